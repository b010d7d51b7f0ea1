"""How a front is printed: a few points, the default marked, with what each saves."""

from pertinence import Figures, Front, OperatingPoint


def make_front(count: int, **options) -> Front:
    points = [
        OperatingPoint(
            f"point {index}",
            "static",
            (0,),
            select=Figures(0.5 + index / 100, (0.4, 0.9), {"gmacs": 1.0 + index}, (1.0, 0.0), 2000),
        )
        for index in range(count)
    ]
    return Front(points, ["a", "b"], **options)


def test_at_most_eight_points_are_printed_the_default_among_them():
    shown = str(make_front(30, default="point 17", reference_cost=40.0)).splitlines()
    rows = shown[2:-2]
    assert len(rows) == 8
    assert [row for row in rows if " * " in row] == [row for row in rows if row.startswith("point 17 *")]
    assert rows[0].split()[-3:] == ["%", "2000", "(search)"]
    assert "97.5 %" in rows[0], "one GMAC of forty"
    assert shown[-1] == "8 of 30 operating points are shown; --verbose shows all, as does to_pandas()."
    assert max(map(len, shown)) <= 100


def test_without_a_reference_nothing_is_said_to_be_saved():
    front = make_front(2)
    assert "%" not in str(front).splitlines()[2].partition("0.9")[2].replace("90.00", "")
    assert "report_saved" not in front.to_pandas()
    assert "select_saved" not in front.to_pandas()


def test_all_points_go_to_pandas_csv_and_notebooks(tmp_path):
    front = make_front(30, default="point 3", reference_cost=40.0)
    frame = front.to_pandas()
    assert list(frame["operating_point"]) == [point.name for point in front]
    assert list(frame[frame["is_default"]]["operating_point"]) == ["point 3"]
    assert frame["select_saved"][0] == 1 - 1 / 40
    front.to_csv(tmp_path / "front.csv")
    assert (tmp_path / "front.csv").read_text() == front.to_csv()
    assert "point 29" in front._repr_html_()


def test_another_default_leaves_the_front_as_it_is():
    front = make_front(3, default="point 0")
    assert (front.marked("point 2").default, front.default) == ("point 2", "point 0")
    assert front.marked(None).default == "point 2", "the last one"
