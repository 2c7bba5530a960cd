"""What is asked of a running server that speaks vLLM's protocol: its models, answers in tokens, and what it counts."""

from __future__ import annotations

import json
import os
import re
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from typing import Any

from pdtrim_core.errors import PdtrimError, reason_of
from pdtrim_core.serving.commands import KEY
from pdtrim_core.wording import one_line, shortened

SECONDS = 600.0
SETTLE_SECONDS = 15.0
"""How long counters may lag behind what they count."""
SAMPLE = re.compile(r"^([a-zA-Z_:][\w:]*)(?:\{(.*)\})? (\S+)$")
LABEL = re.compile(r'(\w+)="((?:[^"\\]|\\.)*)"')
LARGEST = 2**28


@dataclass(frozen=True)
class Served:
    """A server by its address. All methods raise `PdtrimError`."""

    url: str

    def models(self) -> list[str]:
        """Return the names of its models."""
        return [str(model.get("id")) for model in _list_of(self._asked("/v1/models"), "data")]

    def limit(self) -> int | None:
        """Return how many tokens a prompt with its answer has at most, None where it does not say."""
        found = [model.get("max_model_len") for model in _list_of(self._asked("/v1/models"), "data")]
        return min((one for one in found if isinstance(one, int)), default=None)

    def answer(self, model: str, prompt: Sequence[int], count: int) -> list[int]:
        """Return the greedy tokens behind a prompt; end-of-sequence tokens do not end them."""
        body = {"model": model, "prompt": list(prompt), "max_tokens": count, "temperature": 0, "ignore_eos": True}
        (choice,) = _list_of(self._asked("/v1/completions", {**body, "return_token_ids": True}), "choices")
        tokens = choice.get("token_ids")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise PdtrimError(f"{self.url} gives no token_ids: it is no vLLM, or an old one")
        return tokens

    def behind(self, model: str, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
        """Return how far behind the likeliest token each token of an answer is, in log-probabilities of this server's model."""
        tokens = [*prompt, *answer]
        # With prompt_logprobs vLLM reads nothing out of its prefix cache; the salt is for those that do.
        body = {"model": model, "prompt": tokens, "max_tokens": 1, "prompt_logprobs": 1, "cache_salt": f"verify-{time.time_ns()}"}
        (choice,) = _list_of(self._asked("/v1/completions", {**body, "temperature": 0}), "choices")
        places = choice.get("prompt_logprobs")
        if not isinstance(places, list) or len(places) != len(tokens):
            raise PdtrimError(f"{self.url} gives no prompt_logprobs: name a server of the whole model with --unified")
        found = []
        for token, place in zip(answer, places[len(prompt) :], strict=True):
            known = {int(key): float(value["logprob"]) for key, value in place.items()}
            found.append(max(known.values()) - known[token])
        return found

    def counts(self) -> Counts:
        """Return what it counts."""
        request = urllib.request.Request(f"{self.url}/metrics", headers=_key())  # noqa: S310 - the user's address
        found: Counter[tuple[str, frozenset[tuple[str, str]]]] = Counter()
        for line in self._read(request).decode(errors="replace").splitlines():
            match = SAMPLE.match(line)
            if match and not line.startswith("#"):
                found[match[1], frozenset(LABEL.findall(match[2] or ""))] += float(match[3])  # type: ignore[assignment]
        return Counts(found)

    def counts_when(self, settled: Callable[[Counts], bool]) -> Counts:
        """Return what it counts once that is so, or after a while as it is."""
        until = time.monotonic() + SETTLE_SECONDS
        while not settled(counts := self.counts()) and time.monotonic() < until:
            time.sleep(0.05)
        return counts

    def _asked(self, path: str, body: Mapping[str, Any] | None = None) -> Any:
        content = json.dumps(body).encode() if body is not None else None
        headers = {"Content-Type": "application/json", **_key()}
        request = urllib.request.Request(self.url + path, content, headers)  # noqa: S310 - the user's address
        try:
            return json.loads(self._read(request))
        except ValueError:
            raise PdtrimError(f"{self.url}{path} answers no JSON: it is no vLLM") from None

    def _read(self, request: urllib.request.Request) -> bytes:
        try:
            with urllib.request.urlopen(request, timeout=SECONDS) as answer:  # noqa: S310 - the user's address
                content: bytes = answer.read(LARGEST)
                return content
        except urllib.error.HTTPError as error:
            said = one_line(error.read(2**16).decode(errors="replace"))
            raise PdtrimError(f"{request.full_url} answers {error.code}: {shortened(said)}") from None
        except (OSError, HTTPException) as error:
            raise PdtrimError(f"{request.full_url} does not answer: {reason_of(error)}") from None


@dataclass(frozen=True)
class Counts:
    """Prometheus' samples, by name and labels."""

    samples: Mapping[tuple[str, frozenset[tuple[str, str]]], float]

    def of(self, name: str, **labels: str) -> float | None:
        """Return the sum of what has a name and these labels, None where nothing has."""
        names, wanted = {name, f"{name}_total"}, set(labels.items())
        found = [value for (one, has), value in self.samples.items() if one in names and wanted <= has]
        return sum(found) if found else None

    def label(self, name: str, label: str) -> str | None:
        """Return what a label says."""
        return next((dict(has)[label] for (one, has) in self.samples if one == name and label in dict(has)), None)


def _key() -> dict[str, str]:
    key = os.environ.get(KEY)
    return {"Authorization": f"Bearer {key}"} if key else {}


def _list_of(data: Any, key: str) -> list[dict[str, Any]]:
    found = data.get(key) if isinstance(data, dict) else None
    if not isinstance(found, list) or not all(isinstance(one, dict) for one in found):
        raise PdtrimError(f"an answer without {key}: this is no server with vLLM's protocol")
    return found
