import ast
import contextlib
import json

import pytest

from scripts.mutation import runner
from scripts.mutation.__main__ import TARGETS, Baselines, main, read_equivalents, sample_faults
from scripts.mutation.faults import Fault, find_faults


SOURCE = b'''"""A module of 3 lines."""

import torch

TABLE = {"first": "one", "second": "two"}


def f(a: int, b: int = 2, *, scale=0.5):
    """Of 1 and 2."""
    if a < b:
        raise ValueError(f"a is {a}; expected {b + 1}")
    values = torch.relu(a - b).float()
    values[0, 0] = 1
    pair = {"first": [], "second": []}
    values = values.to(a.device)
    print("a", a + 1)
    try:
        return g(a, b, scale=scale) if values is not None else [a, b]
    except (TypeError, np.AxisError):
        return None
'''


@pytest.fixture(scope="module")
def faults():
    return find_faults("bifusion_hf/f.py", SOURCE)


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ("entries exchanged", "{'first': 'two', 'second': 'one'}"),
        ("constant", "3"),
        ("constant", "1.0"),
        ("comparison", "(a <= b)"),
        ("condition negated", "not (a < b)"),
        ("raise removed", "pass"),
        ("operator", "(a + b)"),
        ("call dropped", "(a - b)"),
        ("call dropped", "(torch.relu(a - b))"),
        ("name", "torch.sigmoid"),
        ("statement removed", "pass"),
        ("arguments exchanged", "g(b, a, scale=scale)"),
        ("argument scale dropped", "g(a, b)"),
        ("elements exchanged", "[b, a]"),
        ("comparison", "(values is None)"),
    ],
)
def test_plausible_slips_are_found(faults, kind, text):
    assert (kind, text) in {(fault.kind, fault.text) for fault in faults}


def test_each_is_another_program_and_messages_are_left_alone(faults):
    changed = [fault.apply(SOURCE) for fault in faults]
    assert len(set(changed)) == len(faults) == len({fault.key(SOURCE) for fault in faults})
    for fault, source in zip(faults, changed, strict=True):
        compile(source, "f.py", "exec")
        lines = SOURCE.decode().splitlines()
        assert not lines[fault.line - 1].strip().startswith(('"""', "import", "print")), fault.describe(SOURCE)
        assert fault.text != "(0, 0)" and ast.dump(ast.parse(source)) != ast.dump(ast.parse(SOURCE))
        assert "TypeError" not in fault.text, "the order of types says nothing"
        assert "[]" not in fault.text, "the two entries are equal"
        assert fault.text != "(values)", "there is one device"
        assert "expected" not in fault.describe(SOURCE) or fault.kind == "raise removed"


def test_a_sample_is_drawn_by_its_seed_and_takes_the_files_in_turn():
    parts = ["losses/schedule.py", "losses/semantic.py"]
    first, again, other = (list(sample_faults(parts, seed)) for seed in (1, 1, 2))
    assert first == again and first[:9] != other[:9] and set(first) == set(other)
    assert {fault.path for fault, _ in first[:2]} == {f"bifusion_hf/{part}" for part in parts}
    assert list(sample_faults(parts, 1, per_file=3)) == first[:6]


def _tests_of(path):
    return runner.tests_of(f"bifusion_hf/{path}", runner.ROOT)


def test_tests_mirror_the_source():
    assert _tests_of("losses/matcher.py")["name"] == ["tests/losses/test_matcher.py"]
    assert "tests/losses/test_targets.py" in _tests_of("losses/matcher.py")["folder"]
    deep = _tests_of("sparse/backends/folding.py")
    assert "tests/sparse/test_convolution.py" in deep["folder"] and "tests/test_slow_network.py" in deep["neighbours"]
    assert _tests_of("postprocessing.py")["name"] == ["tests/test_postprocessing.py"]
    assert _tests_of("data/scannet/sens.py")["name"] == ["tests/data/scannet/test_scannet_sens.py"]
    for part in TARGETS:
        tests = sum(_tests_of(part if part.endswith(".py") else f"{part}/some.py").values(), [])
        # A part without a mirror must not end with all tests there are.
        assert tests and len(set(tests)) == len(tests) and "tests/test_readme.py" not in tests, part


def test_a_neighbour_that_was_moved_is_told(tmp_path):
    (tmp_path / "tests" / "losses").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match="matcher.py: no tests .*test_modeling_bifusion.py.*NEIGHBOURS"):
        runner.tests_of("bifusion_hf/losses/matcher.py", tmp_path)


class _Tests:
    """A stand-in of the runner, whose tests reach what a table says."""

    def __init__(self, root, lines, seconds, failed=()):
        self.root = root
        self.lines, self.seconds, self.failed = lines, seconds, failed
        self.asked = []

    def reached(self, file, seconds):
        self.asked.append(file)
        tests = [test for test in self.lines if test.startswith(file)]
        return {
            "lines": {test: self.lines[test] for test in tests},
            "seconds": {test: self.seconds[test] for test in tests},
            "failed": [test for test in tests if test in self.failed],
        }

    def tail(self):
        return "the end"


NEAR, FAR = "tests/losses/test_matcher.py", "tests/losses/test_criterion.py"
LINES = {
    f"{NEAR}::slow": {"losses/matcher.py": [7, 8]},
    f"{NEAR}::fast": {"losses/matcher.py": [8]},
    f"{NEAR}::broken": {"losses/matcher.py": [8]},
    f"{NEAR}::other": {"losses/merging.py": [8]},
    f"{FAR}::cheap": {"losses/matcher.py": [8]},
    f"{FAR}::long": {"losses/matcher.py": [8]},
}
SECONDS = dict(zip(LINES, (3.0, 1.0, 0.1, 0.1, 2.0, 30.0), strict=True))


@pytest.fixture
def baselines(tmp_path, monkeypatch):
    for file in (NEAR, FAR):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).touch()
    monkeypatch.setitem(runner.NEIGHBOURS, "losses", [])
    return Baselines(_Tests(tmp_path, LINES, SECONDS, [f"{NEAR}::broken"]), tmp_path / "reached.jsonl")


def _choose(baselines, line, breadth="name", seconds=10):
    return baselines.choose(Fault("bifusion_hf/losses/matcher.py", line, "", 0, 0, ""), b"", seconds, breadth)


def test_tests_that_reach_the_line_are_chosen_the_fastest_first(baselines):
    assert _choose(baselines, 8) == ([f"{NEAR}::fast", f"{NEAR}::slow"], 4.0)
    assert baselines.runner.asked == [NEAR], "others are not even timed"
    assert _choose(baselines, 8, "folder") == ([f"{FAR}::cheap"], 2.0), "the long one is beyond the limit"
    assert _choose(baselines, 7, seconds=1) == ([f"{NEAR}::slow"], 3.0), "one, however long it takes"


def test_a_line_that_runs_at_import_asks_all_tests_those_that_use_the_file_first(baselines):
    assert _choose(baselines, 1)[0] == [f"{NEAR}::fast", f"{NEAR}::slow", f"{NEAR}::other"]


def test_what_tests_reach_is_kept_until_their_file_or_one_they_reach_changes(baselines, tmp_path):
    def ask():
        again = Baselines(baselines.runner, baselines.path)
        for breadth in ("name", "folder"):
            _choose(again, 8, breadth)

    ask()
    ask()
    assert baselines.runner.asked == [NEAR, FAR]
    (tmp_path / FAR).write_text("changed")
    ask()
    assert baselines.runner.asked == [NEAR, FAR, FAR]


class _Runner(_Tests):
    """Every fault survives, until tests of a breadth in `noticing` are run."""

    noticing = ()

    def __init__(self, root, log):
        super().__init__(root, LINES, SECONDS)

    @contextlib.contextmanager
    def fault(self, fault, source):
        yield

    def outcome(self, tests, seconds):
        file = tests[0].partition("::")[0]
        self.ran.append(file)
        return "noticed" if file in self.noticing else "survived"


@pytest.fixture
def runs(baselines, tmp_path, monkeypatch, capsys):
    """`runs(*words)`: the test files that a run of one fault asks, and the outcomes that it tells."""
    fault = Fault("bifusion_hf/losses/matcher.py", 8, "", 0, 0, "")
    source = b"\n" * 8
    monkeypatch.setattr("scripts.mutation.__main__.sample_faults", lambda *_: [(fault, source)])
    monkeypatch.setattr("scripts.mutation.__main__.copy_tree", lambda _: None)
    monkeypatch.setattr("scripts.mutation.__main__.TestRunner", lambda copy, log, _: _Runner(tmp_path, log))

    def run(*words):
        _Runner.ran = []
        main([str(tmp_path / "results.jsonl"), *words])
        return _Runner.ran, [line.split()[1] for line in capsys.readouterr().out.splitlines() if line[:2] == "1/"]

    return run


def test_what_survived_few_tests_is_asked_about_the_rest_and_what_was_noticed_is_done(runs, monkeypatch):
    assert runs("--breadth", "name") == ([NEAR], ["survived"])
    assert runs("--breadth", "name") == ([], [])
    assert runs() == ([FAR], ["survived"])
    assert runs() == ([], [])
    assert runs("--again") == ([NEAR, FAR], ["survived"])
    monkeypatch.setattr(_Runner, "noticing", [NEAR])
    assert runs("--again") == ([NEAR], ["noticed"])
    assert runs("--again") == runs() == ([], [])


def test_what_is_known_to_change_nothing_is_not_tried(runs, tmp_path, monkeypatch):
    known = {"path": "bifusion_hf/losses/matcher.py", "line": "", "fault": ":   ->  ", "reason": "nothing"}
    (tmp_path / "equivalents.json").write_text(json.dumps([known]))
    monkeypatch.setattr("scripts.mutation.__main__.EQUIVALENTS", tmp_path / "equivalents.json")
    assert runs() == ([], ["survived"])


@pytest.fixture
def results(tmp_path):
    path = tmp_path / "results.jsonl"
    lines = [
        {
            "key": name,
            "path": f"bifusion_hf/losses/{file}.py",
            "outcome": outcome,
            "breadth": "name" if name in "56" else "neighbours",
            "tests": 0 if name == "6" else 3,
            "line": f"line {name}",
            "fault": f"bifusion_hf/losses/{file}.py:{name} constant: 0  ->  {name}",
        }
        for name, file, outcome in (
            ("1", "good", "noticed"),
            ("2", "bad", "survived"),
            ("3", "bad", "noticed"),
            ("4", "bad", "unclear"),
            ("5", "bad", "survived"),
            ("6", "bad", "survived"),
            # Run again, after a test was written.
            ("1", "good", "noticed"),
        )
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def test_report_has_the_worst_file_first_and_the_survivors(results, capsys):
    main([str(results), "--report"])
    assert capsys.readouterr().out.splitlines() == [
        " 33.3% of   3  bifusion_hf/losses/bad.py",
        "100.0% of   1  bifusion_hf/losses/good.py",
        "50.0%: 2 of 4 faults noticed",
        "50.0%: 2 of 4 with those that change no behaviour",
        "1 more that no test was asked about yet",
        "survivors:",
        "bifusion_hf/losses/bad.py:2 constant: 0  ->  2",
        "bifusion_hf/losses/bad.py:5 constant: 0  ->  5 [name]",
        "no behaviour changed:",
    ]


def test_faults_known_to_change_nothing_stand_apart_wherever_their_line_has_moved(
    results, tmp_path, capsys, monkeypatch
):
    known = {"path": "bifusion_hf/losses/bad.py", "line": "line 2", "fault": "constant: 0  ->  2", "reason": "unused"}
    # The same change elsewhere is another fault.
    other = {**known, "line": "another", "fault": "constant: 0  ->  5"}
    (tmp_path / "equivalents.json").write_text(json.dumps([known, other]))
    monkeypatch.setattr("scripts.mutation.__main__.EQUIVALENTS", tmp_path / "equivalents.json")
    main([str(results), "--report"])
    assert capsys.readouterr().out.splitlines() == [
        " 50.0% of   2  bifusion_hf/losses/bad.py",
        "100.0% of   1  bifusion_hf/losses/good.py",
        "66.7%: 2 of 3 faults noticed",
        "50.0%: 2 of 4 with those that change no behaviour",
        "1 more that no test was asked about yet",
        "survivors:",
        "bifusion_hf/losses/bad.py:5 constant: 0  ->  5 [name]",
        "no behaviour changed:",
        "bifusion_hf/losses/bad.py:2 constant: 0  ->  2 (unused)",
    ]


def test_every_fault_that_is_said_to_change_nothing_can_still_be_put_in():
    known = read_equivalents()
    for path in {path for path, *_ in known}:
        source = (runner.ROOT / path).read_bytes()
        lines = [line.decode().strip() for line in source.splitlines()]
        faults = {
            (path, lines[fault.line - 1], fault.describe(source).partition(" ")[2])
            for fault in find_faults(path, source)
        }
        assert {fault for fault in known if fault[0] == path} <= faults
