"""KuaiRand as a source, on made-up files of its columns: causal features, both file forms, broken files by name."""

import gzip
import socket

import numpy as np
import pyarrow as pa
import pyarrow.csv as pv
import pyarrow.parquet as pq
import pytest

from streaming.example import from_exposures
from streaming.sources import kuairand_files
from streaming.sources.kuairand import KuaiRand, configure, declaration
from streaming.sources.kuairand_files import find

DAY = 86_400_000
START = 1_650_816_000_000  # 2022-04-25 00:00 in China
LABELS = [
    "is_click", "is_like", "is_follow", "is_comment", "is_forward", "long_view", "is_profile_enter", "is_hate",
]  # fmt: skip


def made_up(seed: int = 0, n: int = 800, days: int = 5) -> tuple[pa.Table, pa.Table, pa.Table]:
    rng = np.random.default_rng(seed)
    log = {
        "user_id": rng.integers(0, 20, n),
        "video_id": rng.integers(0, 30, n),
        "time_ms": np.sort(START + rng.integers(0, days * DAY - 1, n) // 1000 * 1000),
        "play_time_ms": rng.integers(0, 40_000_000, n),
        "tab": rng.integers(0, 15, n),
        "is_rand": np.zeros(n, np.int64),
    } | {name: (rng.random(n) < 0.4).astype(np.int64) for name in LABELS}
    log["time_ms"][-1] = START + days * DAY - 1
    log["duration_ms"] = rng.integers(0, 90_000, 30)[log["video_id"]]
    users = {"user_id": np.arange(19), "user_active_degree": ["full_active", "UNKNOWN"] * 9 + [None]}
    for name in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
        users[name] = rng.integers(-1, 3000, 19)
    for k in range(18):
        users[f"onehot_feat{k}"] = rng.integers(0, 9, 19)
    videos = {
        "video_id": np.arange(30)[::-1],
        "author_id": np.arange(30)[::-1] + 1000,
        "upload_dt": ["2022-04-10"] * 30,
        "upload_type": ["LongImport", None, "Web"] * 10,
        "music_id": [9_155_697_141] * 30,
        "tag": ["20,43", "7", None] * 10,
    }
    return tuple(pa.table(t) for t in (log, users, videos))


def write(folder, tables, parquet=False):
    folder.mkdir(parents=True, exist_ok=True)
    names = ("log_standard_4_25_to_5_08_pure", "user_features_pure", "video_features_basic_pure")
    for name, table in zip(names, tables, strict=True):
        if parquet and name.startswith("log"):
            pq.write_table(table, folder / f"{name}.parquet")
        elif parquet:
            with gzip.open(folder / f"{name}.csv.gz", "wb") as file:
                pv.write_csv(table, file)
        else:
            pv.write_csv(table, folder / f"{name}.csv")


def exposures(folder, days=12):
    source = KuaiRand(days, 2, folder)
    return list(source.history()), list(source.live())


@pytest.fixture(scope="module")
def shown(tmp_path_factory):
    folder = tmp_path_factory.mktemp("kuairand")
    write(folder, made_up())
    return exposures(folder)


def test_the_last_two_days_are_live_and_all_is_in_order(shown):
    history, live = shown
    assert len(history) + len(live) == 800 and len({e.impression_id for e in history + live}) == 800
    ts = [e.ts_ms for e in history + live]
    assert ts == sorted(ts)
    assert max(e.ts_ms for e in history) < START + 3 * DAY <= min(e.ts_ms for e in live)


def test_outcomes_come_when_the_person_leaves_the_video(shown):
    log = made_up()[0].to_pylist()
    for row, e in zip(log, [*shown[0], *shown[1]], strict=True):
        assert (e.user_id, e.item_id, e.ts_ms) == (row["user_id"], row["video_id"], row["time_ms"])
        assert set(e.outcomes.values()) <= {row["time_ms"] + row["play_time_ms"]}
        assert [task in e.outcomes for task in declaration.tasks] == [bool(row[name]) for name in LABELS]


def test_watching_may_be_a_task_with_its_minutes(shown, tmp_path):
    write(tmp_path, made_up())
    source = KuaiRand(12, 2, tmp_path, watch=True)
    log, live = made_up()[0].to_pylist()[-len(shown[1]) :], list(source.live())
    assert source.declaration.tasks == (*declaration.tasks, "watch") and source.declaration.values == ("watch",)
    source.slots.check(source.declaration)
    for row, e, plain in zip(log, live, shown[1], strict=True):
        assert e.outcomes == plain.outcomes | {"watch": row["time_ms"] + row["play_time_ms"]}
        assert e.values == {"watch": row["play_time_ms"] / 60_000} and e.features == plain.features
    with pytest.raises(ValueError, match="kuairand: watch is 2, allowed is 0 or 1"):
        configure(watch=2)


def test_counts_equal_a_loop_over_what_was_known(shown):
    """An impression counts when it is shown, a click at its own time and only within the window."""
    log = made_up()[0].to_pylist()

    def rate(mine, ts_ms):
        clicks = [r for r in mine if r["is_click"] and r["play_time_ms"] <= declaration.window_ms]
        clicks = sum(r["time_ms"] + r["play_time_ms"] < ts_ms for r in clicks)
        return np.log((clicks + 1) / (len(mine) - clicks + 1.3))

    for place, e in list(enumerate([*shown[0], *shown[1]]))[::17]:
        before = [r for r in log if r["time_ms"] < e.ts_ms]
        for feature, key in (("user", "user_id"), ("video", "video_id")):
            mine = [r for r in before if r[key] == log[place][key]]
            assert e.features[f"{feature}_rate"] == pytest.approx(rate(mine, e.ts_ms), abs=1e-4)
        mine = [r for r in before if (r["user_id"], r["tab"]) == (log[place]["user_id"], log[place]["tab"])]
        assert e.features["user_tab_rate"] == pytest.approx(rate(mine, e.ts_ms), abs=1e-4)
        mine = [r["time_ms"] for r in before if r["user_id"] == log[place]["user_id"]]
        since_s = min(e.ts_ms - max(mine), DAY) / 1000 if mine else DAY / 1000
        assert e.features["gap"] == pytest.approx(np.log1p(since_s) / 3 - 1.5, abs=1e-4)


@pytest.mark.parametrize("cut", [100, 400, 700])
def test_a_feature_never_knows_what_comes_later(shown, tmp_path, cut):
    """Everything after a moment is changed, the labels not yet known at that moment too: features before it stay."""
    log, users, videos = made_up()
    table = log.to_pydict()
    moment = table["time_ms"][cut]
    rng = np.random.default_rng(9)
    for k in range(800):
        if table["time_ms"][k] + table["play_time_ms"][k] >= moment:
            for name in LABELS:
                table[name][k] = 1 - table[name][k]
        if table["time_ms"][k] > moment:
            table["user_id"][k], table["video_id"][k] = int(rng.integers(0, 20)), int(rng.integers(0, 30))
    write(tmp_path, (pa.table(table), users, videos))
    before = [e for e in [*shown[0], *shown[1]] if e.ts_ms <= moment]
    after = [e for e in sum(exposures(tmp_path), []) if e.ts_ms <= moment]
    assert [e.features for e in after] == [e.features for e in before] and len(before) > cut


def test_parquet_and_packed_files_say_the_same(shown, tmp_path):
    write(tmp_path / "kuairand-pure", made_up(), parquet=True)
    assert exposures(tmp_path) == shown


def test_fewer_days_of_history(shown, tmp_path):
    write(tmp_path, made_up())
    history, live = exposures(tmp_path, days=1)
    assert min(e.ts_ms for e in history) >= START + 2 * DAY and len(live) == len(shown[1])


def test_features_are_as_declared(shown):
    names = [f.name for f in declaration.features]
    assert all(list(e.features) == names for e in shown[1])
    batch = from_exposures(shown[1], declaration)
    for f in declaration.features:
        if f.kind == "number":
            assert np.isfinite(batch.features[f.name]).all() and np.abs(batch.features[f.name]).max() < 8, f.name
    by_video = {e.item_id: e.features for e in shown[1]}
    assert all(f["author"] == 1000 + video for video, f in by_video.items())
    # Rows of videos are written from the last to the first: 29 has the first row's tags, 28 the second's.
    assert by_video[29]["tags"] == [20, 43] and by_video[28]["tags"] == [7] and by_video[27]["tags"] == []
    # The user without a row has an empty profile.
    assert {len(e.features["profile"]) for e in shown[1] if e.user_id == 19} == {0}
    assert {len(e.features["profile"]) for e in shown[1] if e.user_id != 19} == {15}


def test_without_a_connection_it_says_what_may_be_set(tmp_path, monkeypatch):
    monkeypatch.setenv("MINUTEHAND_CACHE", str(tmp_path))
    monkeypatch.delenv("MINUTEHAND_DATA", raising=False)
    with socket.socket() as nobody:  # bound, and nobody listens
        nobody.bind(("127.0.0.1", 0))
        refused = kuairand_files.ARCHIVE._replace(url=f"http://127.0.0.1:{nobody.getsockname()[1]}/data.tar.gz")
        monkeypatch.setattr(kuairand_files, "ARCHIVE", refused)
        # A ValueError: what each command says in one line.
        with pytest.raises(ValueError, match="no connection within .*; MINUTEHAND_DATA may name a folder"):
            next(configure().live())


def test_files_are_checked_before_they_are_read(tmp_path):
    write(tmp_path, made_up())
    name = "user_features_pure.csv"
    (tmp_path / "SHA256SUMS").write_text(f"{'0' * 64}  {name}\n")
    with pytest.raises(ValueError, match=f"{name}: sha256 is .*, expected is 0000"):
        next(KuaiRand(1, 1, tmp_path).live())


def test_missing_and_broken_files_are_named(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match="MINUTEHAND_DATA is .* holds log_standard"):
        find(tmp_path)
    write(tmp_path, made_up())
    (tmp_path / "user_features_pure.csv").unlink()
    monkeypatch.setenv("MINUTEHAND_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="missing is user_features_pure"):
        next(configure().live())
    (tmp_path / "user_features_pure.csv").write_text("user_id,nothing\n1,2\n")
    with pytest.raises(ValueError, match="user_features_pure.csv: has no column user_active_degree"):
        next(configure().live())
    (tmp_path / "log_standard_4_25_to_5_08_pure.parquet").write_bytes(b"PAR1 no more")
    with pytest.raises(ValueError, match="parquet: cannot be read"):
        next(configure().live())
