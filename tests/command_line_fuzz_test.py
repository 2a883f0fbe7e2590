"""Whatever is typed ends in a command to run or in one message, never in a traceback.

TRAINER_TEST_EXAMPLES=5000 tries more command lines than the few of the quick tier.
"""

import os
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from trainer.cli.arguments import Arguments, define_flags, parse
from trainer.cli.commands import COMMANDS
from trainer.config import TrainConfig
from trainer.errors import UsageError

EXAMPLES = int(os.environ.get("TRAINER_TEST_EXAMPLES", 0))

# As the system hands them over: any bytes but 0, those that are no UTF-8 as lone surrogates.
texts = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=12)
octets = st.binary(max_size=9).map(lambda data: data.replace(b"\0", b""))
junk = texts | octets.map(lambda data: data.decode(errors="surrogateescape"))
NUMBERS = "0 1 2 8 1e-3 0.5 -1 1e400 0x10 1_0 \u0663 inf nan"
numbers = st.integers().map(str) | st.floats().map(str) | st.sampled_from(NUMBERS.split())
WORDS = """
    true False None cnn mlp adamw tree triangular constant auto 28x28 train[:9%] lr_max,seed
    ~ ~nobody/x gs:// s3://a/b . / =x
"""
words = st.sampled_from(WORDS.split())
values = numbers | words | junk
names = st.sampled_from([*define_flags(), "flagfile", "undefok", "lr_mx"])
flags = st.one_of(
    st.tuples(st.sampled_from(["--", "-", "--no"]), names, st.just("="), values),
    st.tuples(st.sampled_from(["--", "-", "--no", "---"]), names),
).map("".join)
lone = st.sampled_from(["--", "-", "---", "--=", "=", "", "--flagfile", "--no"]) | junk
commands = st.sampled_from([*COMMANDS, "evalute", "Train"])
command_lines = st.lists(
    st.one_of(flags, flags, flags, commands, values, lone), max_size=9
) | st.builds(lambda command, rest: [command, *rest], commands, st.lists(flags, max_size=6))
lines_of_flags = st.lists(flags | lone, max_size=6).map("\n".join)
files = st.one_of(
    st.none(),
    st.binary(max_size=40),
    lines_of_flags.map(lambda text: text.encode(errors="surrogateescape")),
)


@pytest.fixture(scope="module")
def flagfile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("flags") / "any.cfg"


def outcome(argv: list[str]) -> Arguments | UsageError:
    try:
        return parse(argv)
    except UsageError as error:
        return error


@settings(max_examples=EXAMPLES or 120, derandomize=not EXAMPLES, deadline=None, database=None)
@given(line=command_lines, content=files, place=st.integers(0, 9))
@example(line=["--nonesterov=1"], content=None, place=0)
@example(line=["--flagfile"], content=None, place=0)
@example(line=["--flagfile=/"], content=None, place=0)
@example(line=[], content=b"\xff\xfe", place=0)
def test_a_command_or_one_message(
    line: list[str], content: bytes | None, place: int, flagfile: Path
) -> None:
    """Of a refusal, `cli.run` prints the message alone, and its status is 1."""
    argv = ["trainer", *line]
    if content is not None:
        flagfile.write_bytes(content)
        argv.insert(1 + min(place, len(line)), f"--flagfile={flagfile}")
    found = outcome(argv)
    if isinstance(found, UsageError):
        assert str(found).strip()
        assert found.exit_status == 1
    else:
        assert found.command in COMMANDS
        assert isinstance(found.config, TrainConfig)
