"""A scripted language model where a generator replica has its engine.

Ray workers import it by name, so it lives in a package.
"""

import os
from dataclasses import dataclass, field, replace

from services.config import GeneratorSection, ModelSection
from services.models import LocalModel
from services.types import Completion, GenerateRequest
from tests.fakes import FakeEngine
from tests.scripted import ScriptedGenerator


@dataclass
class ScriptedEngine(FakeEngine):
    """Writes what the script says, some milliseconds later; as checksum it gives its process."""

    model: ScriptedGenerator = field(default_factory=lambda: ScriptedGenerator(latency_s=0.02))

    async def generate(self, request: GenerateRequest) -> list[Completion]:
        completions = await self.model.generate(request)
        return [replace(each, policy_checksum=str(os.getpid())) for each in completions]


async def load_scripted(
    model: LocalModel, model_section: ModelSection, section: GeneratorSection
) -> ScriptedEngine:
    """Loads a scripted model where a replica would load vLLM."""
    return ScriptedEngine()
