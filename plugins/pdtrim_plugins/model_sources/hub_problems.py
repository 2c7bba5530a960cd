"""Why a model of the Hugging Face hub cannot be had, in a sentence that says what to do."""

from __future__ import annotations

from collections.abc import Iterator


def hub_problem(error: BaseException, name: str) -> str:
    """Return why the hub did not give a model, from what was raised; nothing where the hub has no part in it.

    transformers wraps what the hub's client raises, and that what the network does; the innermost of them knows best.
    """
    from huggingface_hub import constants, errors  # noqa: PLC0415 - slow to import

    chain = list(_with_causes(error))
    folder = "" if "/" in name else f"; if you mean a folder, say ./{name}"
    if any(isinstance(one, errors.GatedRepoError) for one in chain):
        return f"its owner lets in whom they choose: ask on https://huggingface.co/{name}, then say `hf auth login`"
    if any(isinstance(one, errors.RevisionNotFoundError) for one in chain):
        return "the hub has the model, but not this revision of it"
    if any(isinstance(one, errors.RepositoryNotFoundError) for one in chain):
        return f"the hub has no model of this name, or it is private, for which there is `hf auth login`{folder}"
    if any(isinstance(one, errors.LocalEntryNotFoundError | errors.OfflineModeIsEnabled) for one in chain):
        why = "is not asked, since HF_HUB_OFFLINE is set" if constants.HF_HUB_OFFLINE else "cannot be reached"
        return f"the hub {why}, and its cache on this machine does not have it{folder}"
    return ""


def _with_causes(error: BaseException | None) -> Iterator[BaseException]:
    seen = set[int]()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__
