"""The published table of truly trained subsets: its parts are whole, and of one kind."""

import json

from conftest import ROOT

from src.results import read_part

RUNS = ROOT / "data/benchmarks/smollm2/runs"
TASKS = {"sst2", "yelp_review_full", "mnli", "e2e_nlg_cleaned", "common_gen"}


def test_the_table_is_of_one_kind():
    parts = {path.stem: read_part(path) for path in RUNS.glob("*.csv")}
    records = {path.stem: json.loads(path.read_text(encoding="utf-8")) for path in RUNS.glob("*.json")}
    assert parts.keys() == records.keys() and len(parts) >= 13
    rows = [row for part in parts.values() for row in part]
    assert {row["status"] for row in rows} == {"completed"}
    for column in ("config_hash", "model", "steps"):
        assert len({row[column] for row in rows}) == 1, column
    for item in TASKS:
        assert len({row["content_hash"] for row in rows if row["item"] == item}) == 1
    assert len({record["device"] for record in records.values()}) == 1
    assert len({json.dumps(record["packages"], sort_keys=True) for record in records.values()}) == 1
    assert all(record["commit"] for record in records.values())
    subsets = [(row["trained_on"], row["seed"], row["item"], row["split"], row["metric"]) for row in rows]
    assert len(set(subsets)) == len(subsets) and {row["item"] for row in rows} == TASKS


def test_each_subset_was_scored_on_all_that_it_was_trained_on():
    for path in RUNS.glob("*.csv"):
        rows = read_part(path)
        (members,) = {row["trained_on"] for row in rows}
        for split in ("valid", "test"):
            assert {row["item"] for row in rows if row["split"] == split} == set(members.split())
