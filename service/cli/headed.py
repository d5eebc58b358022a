"""A command whose help lists its options under headings."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import click

REST = "Other"


class Headed(click.Command):
    """`headings`: the names of the parameters under each heading, in order. Others are at the
    end."""

    def __init__(self, *args: Any, headings: Mapping[str, Sequence[str]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.headings = headings

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        parameters = {str(each.name): each for each in self.get_params(ctx)}
        listed = {name for names in self.headings.values() for name in names}
        rest = [name for name in parameters if name not in listed]
        for heading, names in (*self.headings.items(), (REST, rest)):
            records = [parameters[name].get_help_record(ctx) for name in names]
            if rows := [record for record in records if record]:
                with formatter.section(heading):
                    formatter.write_dl(rows)
