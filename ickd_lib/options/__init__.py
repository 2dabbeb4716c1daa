"""The options of the command line: `commands` has the parser, `groups` the options that several commands share."""

from ickd_lib.options.commands import parser
from ickd_lib.options.groups import recipe_defaults

__all__ = ["parser", "recipe_defaults"]
