"""Expert-guided tree search of one patient: Algorithm 1 with the readings of docs/paper_map.md.

Selection, expansion, simulation and backpropagation over two protocols: a `LanguageModel` that
proposes, scores, answers and concludes, and a `Judge` that values what is finished. Pure asyncio:
no Ray, no engine. The tree grows one simulation at a time; only the scores of siblings (and eager
answers) are asked for together.
"""

import asyncio
from collections.abc import Coroutine, Iterable
from dataclasses import replace
from typing import TypeVar

from actors.config import SearchSection
from actors.judge import Judge, Verdict
from actors.language_model import LanguageModel
from actors.reading import NEUTRAL_SCORE, Opening, mostly_foreign, same_question_key, usefulness_of
from actors.search_prompts import PatientPrompts
from actors.search_result import PatientResult, SearchCounts, node_records, trajectory_of
from actors.steps import Step, path_text
from actors.trajectories import rank_trajectories
from actors.tree import Candidate, Node, backpropagate, expand, most_useful, select_leaf
from ehr.language.trajectory import FINAL_SENTENCE, parse_trajectory

ResultT = TypeVar("ResultT")


class PatientSearch:
    """The search of one patient; `run` once.

    Args:
        prompts: the patient and the case prompt, for the trajectories' rows.
        model: writes and scores steps.
        judge: values finished trajectories; nothing of it reaches the model.
        section: sizes and rules of the search.
    """

    def __init__(
        self,
        prompts: PatientPrompts,
        model: LanguageModel,
        judge: Judge,
        section: SearchSection,
    ) -> None:
        self._prompts = prompts
        self._model = model
        self._judge = judge
        self._section = section
        self.counts = SearchCounts()
        self.root = Node(content=Step())

    async def run(self) -> PatientResult:
        """All simulations, then the ranked trajectories and the tree."""
        for _ in range(self._section.num_rollouts):
            leaf = select_leaf(self.root, self._section.exploration_weight)
            terminal = await self._simulate(leaf)
            backpropagate(terminal)
        return self._result()

    async def _simulate(self, leaf: Node[Step]) -> Node[Step]:
        """From a leaf down to a rewarded terminal; everything on the way stays in the tree."""
        node = leaf
        await self._visit(node)
        while not node.terminal:
            await self._expand(node)
            node = most_useful(node.children or [])
            await self._visit(node)
        return node

    async def _visit(self, node: Node[Step]) -> None:
        """Answer a node, or write a terminal and reward it, unless that is done."""
        if node.parent is None or node.content.answer is not None:
            return
        if node.terminal:
            await self._write_final(node)
        else:
            await self._answer(node)

    async def _expand(self, node: Node[Step]) -> None:
        openings = await self._openings(node)
        if openings:
            candidates = await _together(
                self._candidate(node, index, opening) for index, opening in enumerate(openings)
            )
        else:
            self.counts.forced_finals += 1
            step = Step(question=FINAL_SENTENCE, final=True, forced=True)
            candidates = [Candidate(content=step, usefulness=0.0, terminal=True)]
        expand(node, candidates)
        if self._section.answers == "eager":
            children = node.children or []
            await _together(self._answer(child) for child in children if not child.terminal)

    async def _openings(self, node: Node[Step]) -> list[Opening]:
        """New questions to ask after a node; none where the final is forced."""
        if node.depth + 1 >= self._section.max_depth:
            return []
        if not self._model.has_room(node):
            self.counts.context_finals += 1
            return []
        openings = await self._new_openings(node)
        if not openings:
            self.counts.exhausted_expansions += 1
        return openings

    async def _new_openings(self, node: Node[Step]) -> list[Opening]:
        """Up to d questions that are neither repeated nor asked before on the path."""
        seen = {same_question_key(above.content.question) for above in node.lineage()[1:]}
        openings: list[Opening] = []
        for attempt in range(1 + self._section.max_resamples):
            missing = self._section.num_candidates - len(openings)
            if missing == 0:
                break
            self.counts.resample_requests += int(attempt > 0)
            proposed = await self._model.propose(node, missing, attempt)
            openings += [opening for opening in proposed if self._is_new(opening, seen)]
        return openings

    def _is_new(self, opening: Opening, seen: set[str]) -> bool:
        """Whether a proposal is usable and none of `seen`, to which it is then added."""
        counts, question = self.counts, opening.question
        key = same_question_key(question.text)
        counts.untagged_openings += int(not opening.tagged)
        counts.misnumbered_openings += int(opening.misnumbered)
        if not key:
            counts.dropped_questions += 1
            return False
        counts.cut_questions += int(question.cut)
        if key in seen:
            counts.duplicate_questions += 1
            return False
        counts.non_latin_texts += int(mostly_foreign(question.text))
        seen.add(key)
        return True

    async def _candidate(self, node: Node[Step], index: int, opening: Opening) -> Candidate[Step]:
        score = await self._score(node, index, opening)
        step = Step(
            question=opening.question.text,
            final=opening.final,
            scored=True,
            score_is_neutral=score is None,
        )
        return Candidate(
            content=step,
            usefulness=usefulness_of(NEUTRAL_SCORE if score is None else score),
            terminal=opening.final,
        )

    async def _score(self, node: Node[Step], index: int, opening: Opening) -> int | None:
        """A candidate's score; None if two attempts were unreadable."""
        self.counts.scores += 1
        for attempt in range(2):
            self.counts.retry_requests += int(attempt > 0)
            score = await self._model.score(node, index, opening, attempt)
            if score is not None:
                return score
        self.counts.invalid_scores += 1
        return None

    async def _answer(self, node: Node[Step]) -> None:
        written = await self._model.answer(node)
        self.counts.cut_answers += int(written.cut)
        self.counts.empty_answers += int(not written.text)
        self.counts.non_latin_texts += int(mostly_foreign(written.text))
        node.content.answer, node.content.pieces = written.text, written.pieces

    async def _write_final(self, node: Node[Step]) -> None:
        """Write a terminal and value it; unreadable twice, it gets the floor."""
        verdict = await self._attempt_final(node, retry=False)
        if verdict.format_failure is not None:
            self.counts.final_retries += 1
            verdict = await self._attempt_final(node, retry=True)
        self.counts.unreadable_finals += int(verdict.format_failure is not None)
        node.content.verdict = verdict
        node.reward = verdict.value

    async def _attempt_final(self, node: Node[Step], *, retry: bool) -> Verdict:
        step = node.content
        written = await self._model.write_final(node, retry=retry)
        self.counts.retry_requests += written.num_requests if retry else 0
        step.answer, step.pieces = written.text, written.pieces
        step.parsed = parse_trajectory(path_text(node))
        scored = [above.usefulness for above in node.lineage() if above.content.scored]
        return self._judge(step.parsed, scored)

    def _result(self) -> PatientResult:
        prompts = self._prompts
        terminals = [
            trajectory_of(node, prompts.patient_id, prompts.case)
            for node in self.root.subtree()
            if node.reward is not None
        ]
        ranked = rank_trajectories(terminals, self._section)
        best = tuple(map(int, ranked[0].path.split("/")))
        return PatientResult(
            patient_id=prompts.patient_id,
            trajectories=ranked,
            nodes=node_records(self.root, best),
            counts=replace(self.counts),
            root_value=self.root.value,
        )


async def _together(calls: Iterable[Coroutine[None, None, ResultT]]) -> list[ResultT]:
    """All results in order; the first failure cancels the rest and is raised by itself."""
    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(call) for call in calls]
    except BaseExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]
