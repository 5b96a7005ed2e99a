"""The search stage: from the run folder to trajectories."""

from actors.pool import run_search
from actors.search_actor import SearchSetup
from ehr.cohorts.cohort import choose_patients
from services.types import BASE_POLICY
from training.run.progress import OnProgress
from training.run.session import Session
from training.search.view import SearchView, search_result_line


def search(session: Session, on_progress: OnProgress) -> None:
    """Searches patients' trajectories with the untrained model."""
    config = session.config
    session.start_expert()
    session.serve_base()
    patients = choose_patients(
        session.cohort,
        config.search.split,
        config.search.num_patients,
        config.search.balance,
        config.search.seed,
    )
    setup = SearchSetup(
        search=config.search,
        prompt=config.prompt,
        reward=config.reward,
        max_model_len=config.model.max_model_len,
        frame=session.model.chat,
        least=BASE_POLICY,
        make_generator=session.make_generator(),
        make_tokenizer=session.make_tokenizer(),
        make_ask_salience=session.make_ask_salience(),
        cache_tokens=session.cache_tokens,
    )
    view = SearchView(session.run_id, on_progress)
    result = run_search(session.cohort, patients, setup, session.path("search"), view)
    session.stop_expert()
    session.display.say(search_result_line(result.ledger))
