from bifusion_hf.io import compiled_library


def test_a_library_is_of_a_processor_not_of_its_pace(tmp_path, monkeypatch):
    """What changes from second to second would have it built again and again; other instructions must."""
    file = tmp_path / "cpuinfo"
    monkeypatch.setattr(compiled_library, "Path", lambda path: file if path == "/proc/cpuinfo" else None)

    def found(flags="sse avx", model="One", pace=1000):
        core = f"vendor_id\t: V\nmodel name\t: {model}\ncpu MHz\t\t: {{}}\nflags\t\t: {flags}\n\n"
        file.write_text("".join(f"processor\t: {index}\n{core.format(pace + index)}" for index in range(2)))
        return compiled_library.processor()

    assert found() == found(pace=2000)
    assert len({found(), found(flags="sse"), found(model="Other")}) == 3
    assert all(word in found() for word in ("V", "One", "sse avx"))
    file.unlink()
    assert compiled_library.processor()
