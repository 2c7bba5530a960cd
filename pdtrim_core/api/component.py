"""What all components are: frozen classes whose fields are their options.

Its fields declare, once, what a recipe may say, what `pdtrim-core describe` prints, what is checked and what is recorded.
"""

from __future__ import annotations

from abc import ABC
from typing import ClassVar

from pydantic import BaseModel, ConfigDict


class Component(BaseModel, ABC):
    """A part that a recipe names. Subclass the abstract class of a kind, not this one.

    `name` is what recipes say: lower-case words joined by hyphens. `cites` is the source of the method. The first line of
    the docstring is what listings show.

    `streams` says whether it suits a model whose weights stay on the disk (`placement = "stream"`): what runs blocks says True
    where it runs each for all texts before it goes to the next one. A recipe is refused where a component that runs blocks says
    False; others need not say anything.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=False)

    kind: ClassVar[str] = ""
    name: ClassVar[str] = ""
    cites: ClassVar[str] = ""
    streams: ClassVar[bool] = False
