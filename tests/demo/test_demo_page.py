import os

import pytest
from forks import run_python
from frame_factory import make_frame


def test_the_page_says_which_extra_it_needs():
    """In a process where gradio cannot be found; the module that makes the Space does not need it."""
    code = """
import importlib.util, sys
# Whatever has been imported, all of the package is imported anew.
for name in list(sys.modules):
    if name.split(".")[0] in ("bifusion_hf", "gradio", "gradio_client"):
        del sys.modules[name]
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "gradio" else find(name, *rest)
import bifusion_hf.cli.demo_app, bifusion_hf.demo.space
assert "gradio" not in sys.modules
try:
    import bifusion_hf.demo.page
except ImportError as error:
    print(error)
"""
    run = run_python(code)
    assert run.returncode == 0, run.stderr
    assert 'pip install "bifusion_hf[demo]"' in run.stdout


@pytest.fixture
def demo_page():
    pytest.importorskip("gradio")
    from bifusion_hf.demo import page as demo_page

    return demo_page


def test_nothing_of_the_page_needs_a_network(demo_page):
    """No file of fonts but Gradio's own, no analytics, no public API."""
    page = demo_page.build_page(None, [make_frame(48, 64)], "checkpoint")
    assert page.analytics_enabled is False
    theme = demo_page.launch_options()["theme"]
    assert not [sheet for sheet in theme._stylesheets if "http" in str(sheet)]
    assert "http" not in demo_page.STYLE
    assert {function.api_visibility for function in page.fns.values()} == {"private"}


def test_refused_frames_leave_the_page_as_it_is(demo_page, monkeypatch):
    messages = []
    monkeypatch.setattr(demo_page.gr, "Warning", lambda message, **options: messages.append(message))

    def read():
        raise ValueError("depth <b> is wrong")

    outputs = demo_page._run(None, "checkpoint", 0.5, read)
    assert messages == ["depth &lt;b&gt; is wrong"]
    assert len(outputs) == 6 and all(output == demo_page.gr.skip() for output in outputs)
    for function, count in ((demo_page._show, 3), (demo_page._show_score, 4)):
        assert function(None, 0.5, []) == [*[demo_page.gr.skip()] * count, demo_page.NOTHING_SHOWN]


def test_each_selection_has_files_of_its_own_and_the_last_ones_go(demo_page, monkeypatch, tmp_path):
    """One folder a visitor, whatever they filter; none when their session is let go."""
    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    shown, seen = demo_page.Shown(None), []
    for _ in range(3):
        folder = shown.new_folder()
        (folder / "points.ply").touch()
        seen.append(folder)
        assert list(tmp_path.iterdir()) == [folder]
    assert len(set(seen)) == 3
    shown.folder.cleanup()
    assert not list(tmp_path.iterdir())


def test_what_visitors_send_and_leave_is_bounded(demo_page):
    from bifusion_hf.demo.serving import KEPT_VISITORS, UPLOAD_MEBIBYTES, serving_options

    options = serving_options()
    assert (options["max_file_size"], options["state_session_capacity"]) == (UPLOAD_MEBIBYTES << 20, KEPT_VISITORS)
    page = demo_page.build_page(None, [make_frame(48, 64)], "checkpoint")
    texts = [str(getattr(part, "value", "")) for part in page.blocks.values()]
    assert any(f"to {UPLOAD_MEBIBYTES} MiB" in text for text in texts)


def test_every_choice_of_the_depth_units_has_a_value(demo_page, monkeypatch):
    """None would be no choice: the field went blank."""
    assert all(value is not None for _, value in demo_page.DEPTH_SCALES)
    given = []
    monkeypatch.setattr(demo_page, "read_upload", lambda *fields: given.append(fields))
    for _, value in demo_page.DEPTH_SCALES:
        demo_page.read_form(None, "d.npy", value, "", None)
    assert [fields[2] for fields in given] == [1000.0, 5000.0, None]


def test_names_that_were_chosen_stay_choices(demo_page):
    selection = demo_page.Selection(None, [], 0.9, ["couch"], {"bed": 2})
    shown = demo_page._choices(selection)
    assert shown.choices == [("bed (2)", "bed"), ("couch (0)", "couch")] and shown.value == ["couch"]


def test_a_camera_fills_the_form(demo_page, monkeypatch):
    messages = []
    monkeypatch.setattr(demo_page.gr, "Info", messages.append)
    skip = demo_page.gr.skip()
    assert demo_page._fill_from_camera(demo_page.OWN_CALIBRATION, None) == (skip, skip)
    assert demo_page._fill_from_camera("Kinect v1", None) == (1000, "")
    assert "depend on its size" in messages[0]


class ServedPage:
    """A page whose launch is only asked for; `error` is what Gradio says."""

    local_url = "http://127.0.0.1:7860/"

    def __init__(self, error=None):
        self.error, self.options, self.blocked = error, {}, False

    def queue(self):
        return self

    def launch(self, **options):
        self.options = options
        if self.error is not None:
            raise self.error

    def block_thread(self):
        self.blocked = True


def serve(page, demo_page, monkeypatch, tmp_path, **options):
    from bifusion_hf.cli import demo_app

    monkeypatch.setenv("GRADIO_TEMP_DIR", str(tmp_path))
    monkeypatch.setattr(demo_page, "build_page", lambda *_: page)
    monkeypatch.setattr(demo_app, "load_segmenter", lambda *_: None)
    demo_app.launch("checkpoint", [], **options)


def test_the_server_says_its_address_and_offers_no_link(demo_page, monkeypatch, tmp_path, capsys):
    monkeypatch.setenv("NO_PROXY", "example.org")
    page = ServedPage()
    serve(page, demo_page, monkeypatch, tmp_path)
    assert page.options["quiet"] and "share" not in page.options and page.blocked
    assert capsys.readouterr().out == "The page: http://127.0.0.1:7860/  (Ctrl-C ends it)\n"
    # Gradio asks itself; a proxy does not know this machine.
    assert os.environ["NO_PROXY"] == "example.org,localhost,127.0.0.1"
    page = ServedPage()
    serve(page, demo_page, monkeypatch, tmp_path, prevent_thread_lock=True)
    assert not page.blocked


def test_an_address_that_does_not_answer_is_no_reason_to_share(demo_page, monkeypatch, tmp_path):
    page = ServedPage(ValueError("When localhost is not accessible, ... Please set share=True"))
    with pytest.raises(ValueError, match=r"the page does not answer .*NO_PROXY") as error:
        serve(page, demo_page, monkeypatch, tmp_path)
    assert "share" not in str(error.value)
    with pytest.raises(ValueError, match="^another"):
        serve(ServedPage(ValueError("another")), demo_page, monkeypatch, tmp_path)
