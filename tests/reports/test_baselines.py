"""Which job a row's gain is over."""

import yaml

from flowstill.reports import results, table_text, write_report
from flowstill.runs import JobSummary, Run, RunWriter, Scores, Summary


def test_a_row_is_compared_with_its_own_network_its_labels_and_its_decay(tmp_path):
    """Each in turn decides where what comes before it does not; a job that fits in nothing has the first baseline."""

    def job(name="resnet8", teacher=None, labels=None, decays=(1e-4,), **options):
        players = {str(n): {"optimizer": {"weight_decay": decay}} for n, decay in enumerate(decays)}
        stages = [{"name": "task", "steps": 40, "players": players}]
        return {"network": {"name": name, "options": options}, "stages": stages, "teacher": teacher, "labels": labels}

    jobs = {
        "teacher": job("resnet26"),
        "alone": job(),
        "light": job(decays=(1e-5,)),
        "few": job(labels=50),
        "narrow": job(width=0.5, decays=(1e-5,)),
        "alone_taught": job(teacher="teacher"),
        "light_taught": job(teacher="teacher", decays=(1e-5, 0)),
        "few_taught": job(teacher="teacher", labels=50, decays=(1e-5,)),
        "narrow_taught": job(teacher="teacher", width=0.5),
        "other_taught": job(teacher="teacher", width=3, decays=(1e-5,)),
    }
    numbers = {name: 50.0 + number**2 for number, name in enumerate(jobs)}
    given = {
        "name": "small",
        "jobs": jobs,
        "data": {"name": "cifar10"},
        "ensembles": {"both": {"jobs": ["alone", "narrow_taught"]}},
    }
    writer = RunWriter.create(tmp_path / "run")
    writer.write_recipe(yaml.safe_dump(given, sort_keys=False))
    done = {name: JobSummary(accuracy=accuracy) for name, accuracy in numbers.items()}
    writer.write_summary(Summary(finished=True, jobs=done, ensembles={"both": Scores(accuracy=99.0)}))
    run = Run.open(tmp_path / "run")
    rows = {row.name: row for row in results(run)}
    assert {name: row.baseline for name, row in rows.items() if row.baseline} == {
        "alone_taught": "alone",
        "light_taught": "light",
        "few_taught": "few",
        "narrow_taught": "narrow",
        "other_taught": "alone",
        "both": "narrow",
    }
    assert rows["light_taught"].gain == numbers["light_taught"] - numbers["light"]
    assert rows["both"].gain == 99.0 - numbers["narrow"]
    assert all(rows[name].gain is None for name in ("teacher", "alone", "light", "few", "narrow"))
    said = "over alone; light for light_taught; few for few_taught; narrow for narrow_taught, both"
    assert said in table_text(run)
    assert said in write_report(run).read_text(encoding="utf-8")
