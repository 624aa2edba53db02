"""Every chat format of Mistral's, ours and mistral-common's over the same vocabularies."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mistral_common
import pytest

from mistral_mlx.text.chat import MistralChat
from mistral_mlx.text.sentencepiece import SentencePiece
from mistral_mlx.text.tekken import Tekken

if TYPE_CHECKING:
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer

DATA = Path(mistral_common.__file__).parent / "data"
SPM_FILES = {
    "v1": "tokenizer.model.v1",
    "v2": "mistral_instruct_tokenizer_240216.model.v2",
    "v3": "mistral_instruct_tokenizer_240323.model.v3",
    "v7": "mistral_instruct_tokenizer_241114.model.v7",
}
TEKKEN_VERSIONS = ("v3", "v7", "v11", "v13", "v15")
FORMATS = [*SPM_FILES, *(f"{version}-tekken" for version in TEKKEN_VERSIONS)]

# As newer releases name them; none of their files is at hand, so names are put on the vocabulary that is.
LATER_NAMES = ["[ARGS]", "[CALL_ID]", "[THINK]", "[/THINK]", "[MODEL_SETTINGS]", "[/MODEL_SETTINGS]"]
EFFORTS = ("none", "high")


def quick(*names: str) -> list[Any]:
    """Every format, all but some of them slow."""
    return [name if name in names else pytest.param(name, marks=pytest.mark.slow) for name in FORMATS]


def tekken_of(version: str, folder: Path, size: int | None = None) -> Tekken:
    """The tekken vocabulary that ships, as a release of another version would state it.

    Args:
        size: keep only the beginning; it cuts text as the whole does, and is read faster.
    """
    from mistral_common.tokens.tokenizers.tekken import Tekkenizer

    data = json.loads((DATA / "tekken_240911.json").read_text())
    if version != "v3":
        names = [f"<SPECIAL_{i}>" for i in range(32)]
        for token in Tekkenizer.DEPRECATED_SPECIAL_TOKENS:
            names[token["rank"]] = str(token["token_str"].value)
        table = enumerate(names + LATER_NAMES)
        data["special_tokens"] = [{"rank": i, "token_str": name, "is_control": True} for i, name in table]
        data["config"]["version"] = version
    if size is not None:
        data["config"]["default_vocab_size"] = size
        data["vocab"] = data["vocab"][: size - data["config"]["default_num_special_tokens"]]
    if version == "v15":
        effort = {"type": "enum", "values": EFFORTS, "default": EFFORTS[0], "accepts_none": True}
        data["model_settings_builder"] = {"reasoning_effort": effort}
    (folder / "tekken.json").write_text(json.dumps(data))
    return Tekken(folder / "tekken.json")


@pytest.fixture(scope="session")
def tekkens(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tekken]:
    """Tekken tokenizers of every version."""
    return {version: tekken_of(version, tmp_path_factory.mktemp(version)) for version in TEKKEN_VERSIONS}


@pytest.fixture(scope="session")
def tokenizers(tekkens: dict[str, Tekken]) -> dict[str, SentencePiece | Tekken]:
    """A tokenizer for each of FORMATS."""
    pieces = {version: SentencePiece((DATA / name).read_bytes()) for version, name in SPM_FILES.items()}
    return {**pieces, **{f"{version}-tekken": tekken for version, tekken in tekkens.items()}}


@pytest.fixture(scope="session")
def formats(tokenizers: dict[str, SentencePiece | Tekken]) -> dict[str, MistralChat]:
    """Ours."""
    return {name: MistralChat(tokenizer) for name, tokenizer in tokenizers.items()}


@pytest.fixture(scope="session")
def peers(tekkens: dict[str, Tekken]) -> dict[str, MistralTokenizer[Any]]:
    """mistral-common's."""
    from mistral_common.protocol.instruct.normalize import get_normalizer
    from mistral_common.protocol.instruct.validator import ValidationMode, get_validator
    from mistral_common.tokens.tokenizers import instruct
    from mistral_common.tokens.tokenizers.base import TokenizerVersion
    from mistral_common.tokens.tokenizers.mistral import MistralTokenizer
    from mistral_common.tokens.tokenizers.sentencepiece import SentencePieceTokenizer

    def peer(name: str) -> MistralTokenizer[Any]:
        version = TokenizerVersion(name.removesuffix("-tekken"))
        tokenizer: Any = (
            tekkens[version.value].common if "-" in name else SentencePieceTokenizer(DATA / SPM_FILES[name], version)
        )
        kind = getattr(instruct, f"InstructTokenizer{version.value.upper()}")
        builder = tokenizer.model_settings_builder
        return MistralTokenizer(
            kind(tokenizer), get_validator(version, ValidationMode.test), get_normalizer(version, builder)
        )

    return {name: peer(name) for name in FORMATS}
