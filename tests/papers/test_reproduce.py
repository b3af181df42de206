"""A table of a paper: trained rows, kept teachers, a stop in the middle."""

import shutil

import pytest
from safetensors.torch import load_file, save_file

import flowstill as fs
from flowstill.engine import training
from flowstill.papers import plan as planning
from flowstill.papers.plan import jobs_left, plan_table
from support.compared_runs import rows, stop_at
from support.tiny_table import PRINTED, TINY, make


def test_a_table_from_scratch(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", lambda: {"tiny-table": PRINTED})
    table = make(plan_table(tiny, seeds=2), tmp_path / "out")
    assert table.rows == ("scratch", "fsp")
    assert table.at("fsp", "total_iterations").measured == (16.0, 16.0)
    assert len(table.at("fsp", "ensemble").measured) == 2
    assert all(0 <= value <= 100 for value in table.at("fsp", "average").measured)
    assert table.at("scratch", "net1").difference == pytest.approx(table.at("scratch", "net1").mean - 50)
    for name in ("table.md", "table.csv", "table.png", "table.svg"):
        assert (tmp_path / "out" / name).stat().st_size > 0
    runs = sorted((tmp_path / "out").glob("seed-*"))
    assert len(runs) == 2
    summaries = [fs.Run.open(run).summary["jobs"] for run in runs]
    assert "kd" not in summaries[0]  # no printed row asks for it
    for number, summary in enumerate(summaries):
        assert table.at("fsp", "net2").measured[number] == summary["fsp_2"]["accuracy"]


def test_the_teacher_is_trained_once_for_all_seeds_and_tables(tiny, tmp_path, monkeypatch):
    trained = []
    plain = training.RunWriter.create
    monkeypatch.setattr(
        training.RunWriter, "create", lambda path, **more: (trained.append(str(path)), plain(path, **more))[1]
    )
    make(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "one")
    assert sum("teachers" in path for path in trained) == 1
    make(plan_table(tiny, rows=["first"]), tmp_path / "other")
    assert sum("teachers" in path for path in trained) == 1
    make(plan_table(tiny, rows=["first"], scale=2), tmp_path / "longer")
    assert sum("teachers" in path for path in trained) == 2
    shutil.rmtree(tmp_path / "teachers")  # a table that is whole does without
    before = len(trained)
    make(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "one")
    assert len(trained) == before
    assert jobs_left(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "one", "32") == {}


def test_each_seeds_run_folder_is_looked_up_once(tiny, tmp_path, monkeypatch):
    make(plan_table(tiny, seeds=2, rows=["scratch"]), tmp_path / "out")
    looked = []
    plain = planning.part_of
    monkeypatch.setattr(
        planning, "part_of", lambda plan, seed, *more: (looked.append(seed), plain(plan, seed, *more))[1]
    )
    plan = plan_table(tiny, seeds=2, rows=["scratch"])
    work = planning.check_plan(plan, tmp_path / "out", precision="32", device="cpu")
    assert not work.left
    make(plan, tmp_path / "out", parts=work.parts)
    assert looked == [0, 1]


def test_a_retrained_teacher_with_other_weights_is_refused(tiny, tmp_path):
    make(plan_table(tiny, rows=["kd"]), tmp_path / "out")
    (old,) = (tmp_path / "out").glob("seed-*")
    teacher = old / "teacher.safetensors"
    save_file({name: tensor + 1 for name, tensor in load_file(teacher).items()}, teacher)
    shutil.rmtree(tmp_path / "teachers")
    with pytest.raises(fs.RunError, match=r"teacher\.safetensors' is not the network that the run saved"):
        make(plan_table(tiny, rows=["kd", "first"]), tmp_path / "out")
    summary = old / "summary.json"
    summary.write_text(summary.read_text().replace('"sha256"', '"other"'))  # as an earlier version wrote it
    with pytest.raises(fs.RunError, match=r"another 'teacher': .*another out="):
        make(plan_table(tiny, rows=["kd", "first"]), tmp_path / "out")


def test_rows_that_are_added_later_give_the_same_numbers(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", dict)
    plans = [plan_table(tiny, seeds=2, rows=rows) for rows in (["kd"], ["scratch", "fsp"], ["fsp", "kd"])]
    for plan in plans:
        table = make(plan, tmp_path / "out")
    with pytest.raises(KeyboardInterrupt):
        make(plan_table(tiny, rows=["fsp", "kd"]), tmp_path / "other", on_step=stop_at(("first", "transfer", 2)))
    at_once = make(plan_table(tiny, seeds=2, rows=["fsp", "kd"]), tmp_path / "other")
    assert table.cells == at_once.cells
    runs = sorted((tmp_path / "out").glob("seed-*"))
    assert len(runs) == 2
    assert jobs_left(plan_table(tiny, seeds=3, rows=["kd", "scratch"]), tmp_path / "out", "32") == {
        "scratch": 1,
        "kd": 1,
    }
    assert jobs_left(plan_table(tiny, rows=["kd"]), tmp_path / "new", "32") == {"kd": 1}
    assert jobs_left(plan_table(tiny, rows=["kd"]), tmp_path / "elsewhere" / "new", "32") == {"teacher": 1, "kd": 1}
    for path in runs:
        run = fs.Run.open(path)
        assert set(run.jobs) == {"teacher", "scratch", "first", "fsp_1", "fsp_2", "kd"}
        counted = [row[:4] for row in rows(run)]
        assert len(set(map(tuple, counted))) == len(counted)  # no step of a job was measured twice


def test_rows_that_need_float32_do_not_join_a_bf16_run(tiny, tmp_path, monkeypatch):
    """Where `auto` may choose; a precision that is asked for stays."""
    monkeypatch.setattr(planning, "printed_tables", dict)
    tiny.write_text(
        TINY.replace(
            "ensembles:", "  nst: {network: *net, teacher: teacher, stages: [{<<: *flow, transfer: nst}]}\nensembles:"
        )
    )
    make(plan_table(tiny, rows=["scratch"]), tmp_path / "out", precision="bf16")
    (old,) = (tmp_path / "out").glob("seed-*")
    for named, precision, joins in ((["kd"], "auto", True), (["nst"], "auto", False), (["nst"], "bf16", True)):
        (part,) = planning.parts_of(plan_table(tiny, rows=named), tmp_path / "out", precision)
        assert (part.path == old) == joins


def test_a_run_continues_after_its_recipe_gained_rows(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", dict)
    make(plan_table(tiny, rows=["scratch"]), tmp_path / "out")
    tiny.write_text(TINY.replace("ensembles:", "  more: {network: *net, stages: [*task], seed: 3}\nensembles:"))
    table = make(plan_table(tiny, rows=["scratch", "more"]), tmp_path / "out")
    (run,) = (tmp_path / "out").glob("seed-*")
    assert set(fs.Run.open(run).jobs) == {"scratch", "more"}
    assert all(table.at(row, "accuracy").measured for row in ("scratch", "more"))
    make(plan_table(tiny, rows=["scratch"], set=["scratch.stages.task.lr=0.1"]), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("seed-*"))) == 2


def test_files_about_other_rows_are_removed(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", dict)
    make(plan_table(tiny, seeds=2, rows=["scratch", "kd"]), tmp_path / "out")
    assert (tmp_path / "out" / "paired.md").exists()
    make(plan_table(tiny, seeds=2, rows=["kd"]), tmp_path / "out")
    assert not list((tmp_path / "out").glob("paired.*"))


def test_another_precision_is_another_run(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", dict)
    plan = plan_table(tiny, rows=["scratch"])
    for precision in ("32", "bf16", "32"):
        make(plan, tmp_path / "out", precision=precision)
    assert len(list((tmp_path / "out").glob("seed-*"))) == 2


def test_a_teacher_is_not_a_baseline_even_without_its_student(tiny, tmp_path, monkeypatch):
    """It is trained once for all seeds."""
    monkeypatch.setattr(planning, "printed_tables", dict)
    tiny.write_text(
        TINY.replace("ensembles:", "  pupil: {network: *net, teacher: scratch, stages: [*flow]}\nensembles:")
    )
    make(plan_table(tiny, seeds=2, rows=["scratch", "kd"]), tmp_path / "out")
    assert not (tmp_path / "out" / "paired.md").exists()


def test_differences_between_seeds_with_their_own_teachers_say_so(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", dict)
    monkeypatch.setattr(planning, "trained_by_itself", lambda recipe, name: False)
    make(plan_table(tiny, seeds=2, rows=["scratch", "kd"]), tmp_path / "out")
    assert "for a teacher per seed" in (tmp_path / "out" / "paired.md").read_text()


def test_an_unfinished_row_is_finished_before_others(tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(planning, "printed_tables", dict)
    with pytest.raises(KeyboardInterrupt):
        make(plan_table(tiny, rows=["scratch", "kd"]), tmp_path / "out", on_step=stop_at(("kd", "joint", 3)))
    plan = plan_table(tiny, rows=["first"])
    assert jobs_left(plan, tmp_path / "out", "32") == {"first": 1, "kd": 1}
    seen = []
    make(plan, tmp_path / "out", on_step=lambda *here: seen.append(here))
    assert seen == [
        *(("kd", "joint", step) for step in (4, 5, 6)),
        *(("first", "transfer", step) for step in (1, 2, 3, 4)),
    ]


@pytest.mark.parametrize("where", [("teacher", "task", 3), ("first", "transfer", 2), ("kd", "joint", 4)])
def test_a_stopped_table_continues_with_the_same_numbers(tiny, tmp_path, where):
    plan, stop = plan_table(tiny, rows=["fsp", "kd"]), stop_at(where)
    steps, seen = [], []
    whole = make(plan, tmp_path / "whole" / "out", on_step=lambda *here: steps.append(here))

    def interrupt(*here):
        seen.append(here)
        stop(*here)

    with pytest.raises(KeyboardInterrupt):
        make(plan, tmp_path / "cut" / "out", on_step=interrupt)
    assert seen[-1] == where
    assert make(plan, tmp_path / "cut" / "out", on_step=lambda *here: seen.append(here)) == whole
    assert seen == steps  # each step once


def test_a_stand_in_data_set_is_noted(tiny, tmp_path):
    tiny.write_text(TINY.replace("name: digits", "name: mnist"))
    plan = plan_table(tiny, rows=["scratch"], data="digits")
    assert plan.stand_in == "digits"
    make(plan, tmp_path / "out")
    assert "Images: digits, in place of the paper's data set." in (tmp_path / "out" / "table.md").read_text()


def test_another_budget_makes_another_run(tiny, tmp_path):
    for scale in (1, 2):
        make(plan_table(tiny, rows=["scratch"], scale=scale), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("seed-*"))) == 2


def test_a_recipe_without_printed_numbers_is_a_table_too(tiny, tmp_path):
    table = make(plan_table(tiny), tmp_path / "out")
    assert table.rows == ("teacher", "scratch", "first", "fsp", "kd")
    assert all(one.printed is None for one in table.cells)
    (run,) = (tmp_path / "out").glob("seed-*")
    assert fs.Run.open(run).finished
