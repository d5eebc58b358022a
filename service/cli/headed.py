"""A command whose help lists its options under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click


class Headed(click.Command):
    """`headings`: the names of the options under each heading, in order; `--help` is in the last
    one."""

    def __init__(self, *args: Any, headings: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parameters = {str(each.name): each for each in self.params}
        *_, last = self.headings
        for heading, names in self.headings.items():
            shown = [parameters[name] for name in names]
            if heading == last and (of_help := self.get_help_option(ctx)):
                shown.append(of_help)
            records = [parameter.get_help_record(ctx) for parameter in shown]
            with formatter.section(heading):
                formatter.write_dl([record for record in records if record])
