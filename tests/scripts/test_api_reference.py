import pytest

from scripts.api_reference import broken_links


@pytest.mark.parametrize(
    ("link", "is_broken"),
    [
        ("other.html", False),
        ("other.html#Thing.part", False),
        ("#here", False),
        ("https://example.org/nothing", False),
        ("nowhere.html", True),
        ("other.html#Nothing", True),
        ("#there", True),
        ("../outside.html", True),
    ],
)
def test_links_that_lead_nowhere_are_found(tmp_path, link, is_broken):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "page.html").write_text(f'<h1 id="here">Page</h1><a href="{link}">link</a>')
    (tmp_path / "deep" / "other.html").write_text('<a href="page.html">back</a><section id="Thing.part"></section>')
    assert broken_links(tmp_path) == ([f"deep/page.html: {link}"] if is_broken else [])
