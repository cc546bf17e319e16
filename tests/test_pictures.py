"""What pictures share.

.venv/bin/python -m pytest tests/test_pictures.py
"""

import matplotlib
import matplotlib.pyplot as plt
import pytest

from harness.pictures import Line, draw_by_length, frame_lines, picture


def test_a_band_wider_than_all_lines_is_cut_at_the_frame_which_holds_the_lines():
    figure, axis = plt.subplots()
    for label, values in (("rope", [3.5, 4.5]), ("alibi", [3.4, 3.4])):
        axis.plot([256, 512], values, label=label)
    axis.fill_between([256, 512], [-9, -9], [9, 9])
    axis.axhline(0)  # without a label
    frame_lines(axis)
    low, high = axis.get_ylim()
    plt.close(figure)
    assert 3.2 < low < 3.4
    assert 4.5 < high < 4.7


def test_a_line_without_points_draws_nothing_and_leaves_the_frame_as_it_is():
    figure, axis = plt.subplots()
    Line("rope", {}, "black", "-", "o").draw(axis, [], axis.fill_between)
    frame_lines(axis)
    assert axis.get_ylim() == (0, 1)
    plt.close(figure)


@pytest.mark.parametrize("name", [r"$\frac", "$$$", "a|b\n", "<b>", "\u202eabc"])
def test_a_name_is_drawn_as_it_stands_whatever_the_users_own_settings(tmp_path, name):
    with matplotlib.rc_context({"text.usetex": True, "savefig.format": "pdf"}):
        with picture(tmp_path / "a.png", 1, 1, (3, 3)) as ((axis,),):
            draw_by_length(axis, [Line(name, {4: [1.0], 8: [2.0]}, "black", "-", "o")], 8)
        assert matplotlib.rcParams["text.usetex"]
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
