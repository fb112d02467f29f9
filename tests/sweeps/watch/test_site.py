"""Laws of the live page's addresses, asked without a socket.

pytest tests/sweeps/watch/test_site.py     a few seconds
"""

from __future__ import annotations

import gzip
import io
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urljoin, urlsplit

import pytest
from PIL import Image

from sweeps.ledger.folder import RunFolder
from sweeps.serving.messages import Request, Response
from sweeps.watch import grafana
from sweeps.watch.runs import Runs
from sweeps.watch.site import ON_THIS_MACHINE, Site, is_this_machine
from tests.sweeps.fake_run import build_run, draw_face, entry, write_trial

HERE = "127.0.0.1:8266"


class Clock:
    """Seconds that pass when a test says so."""

    time = 0.0

    def __call__(self) -> float:
        """Now."""
        return self.time


def site_of(path: Path, clock: Clock | None = None, token: str | None = None, *, is_run: bool = False) -> Site:
    return Site(Runs(path, is_run=is_run, now=clock or Clock()), token)


def ask(site: Site, target: str, method: str = "GET", **headers: str) -> Response:
    said = {name.replace("_", "-"): value for name, value in headers.items()}
    return site.respond(Request(method, target, {"host": HERE, **said}))


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    """Two runs side by side, one of them at work, with photos of the person."""
    folder = tmp_path / "runs"
    build_run(folder / "ada", num_trials=3, images_per_prompt=2, num_running=1)
    build_run(folder / "bob", num_trials=2, images_per_prompt=2, name="bob")
    for name in ("ada", "bob"):
        write_photos(folder / name)
    return folder


def write_photos(run_dir: Path) -> None:
    for number, place in enumerate(("dataset", "dataset/references", "controls")):
        (run_dir / place).mkdir(parents=True)
        draw_face(48, number, number, 0.9).save(run_dir / place / "photo.png")


# --- addresses


def test_one_run_is_at_once_on_its_page_and_several_stand_side_by_side(runs: Path) -> None:
    """The start of a run folder is the run; that of a folder of runs says of each how it goes, and leads there."""
    assert ask(site_of(runs / "ada"), "/").headers["Location"] == "/run/ada/"
    page = ask(site_of(runs), "/?theme=dark").body.decode()
    assert page.startswith("<!doctype html>")
    for name in ("ada", "bob"):
        assert f'href="run/{name}/?theme=dark"' in page
        assert f'src="run/{name}/picture/trials/' in page
    assert "1 running" in page
    assert "champion" in page


def test_a_run_s_page_follows_the_run_and_leads_back(runs: Path) -> None:
    """The page polls the content beside it; of several runs it leads back to all, of one it does not."""
    site = site_of(runs)
    page = ask(site, "/run/ada/?theme=light").body.decode()
    assert 'data-follow="content"' in page
    assert 'href="../../?theme=light"' in page
    assert 'data-theme="light"' in page
    assert 'href="../../"' not in ask(site_of(runs / "ada"), "/run/ada/").body.decode()
    assert ask(site, "/run/ada").headers["Location"] == "/run/ada/"
    assert "<main" not in ask(site, "/run/ada/content").body.decode()


def test_nothing_but_the_person_s_new_pictures_ever_leaves(runs: Path) -> None:
    """Every address on any page is there, and no answer is a file of the run folder: no photo, no text chunk."""
    photos = {path.read_bytes() for path in runs.rglob("photo.png")}
    files = {path.read_bytes() for path in runs.rglob("*.png")}
    assert len(photos) == 3
    for site in (site_of(runs), site_of(runs / "ada"), site_of(runs, token="secret")):  # noqa: S106
        found = dict(walk(site, f"{site.prefix}/"))
        assert sum(answer.headers["Content-Type"].startswith("image/") for answer in found.values()) > 20
        for address, answer in found.items():
            assert answer.status == 200, address
            assert answer.body not in photos
            assert answer.body not in files, "written anew"
    for place in ("dataset/photo.png", "dataset/references/photo.png", "controls/photo.png"):
        assert ask(site_of(runs), f"/run/ada/picture/{place}").status == 404


def walk(site: Site, start: str) -> Iterator[tuple[str, Response]]:
    """Every address that can be reached from `start`, and its answer; redirects are followed."""
    waiting, seen = (
        [start, *(f"{site.prefix}/{card}" for card in ("card/best/", "card/progress/", "d/x/", "d-solo/x"))],
        set(),
    )
    while waiting:
        address = waiting.pop()
        if address in seen:
            continue
        seen.add(address)
        answer = ask(site, address)
        if answer.status == 302:
            waiting.append(answer.headers["Location"])
            continue
        yield address, answer
        if answer.headers["Content-Type"].startswith("text/html"):
            for found in re.findall(r'(?:src|href|data-follow|data-enlarged)="([^"]*)"', answer.body.decode()):
                joined = urljoin(address, found.replace("&amp;", "&"))
                if not urlsplit(joined).scheme:
                    waiting.append(joined.partition("#")[0])


@pytest.mark.parametrize(
    "path",
    [
        "/run/ada/picture/trials/../dataset/photo.png",
        "/run/ada/picture/trials/%2e%2e/dataset/photo.png",
        "/run/ada/picture/trials/base/images-0/..%2f..%2f..%2fdataset/photo.png",
        "/run/ada/picture/trials/base/images-0/..%5c..%5cphoto.png",
        "/run/ada/picture/trials%2fbase%2fimages-0%2f000-0.png",
        "/run/ada/picture/renders/..%2f..%2fada/dataset/photo.png",
        "/run/ada/picture//etc/passwd",
        "/run/ada/picture/trials/base/images-0/000-0.png%00",
        "/run/ada/picture/trials/base/images-0/linked.png",
        "/run/ada/picture/trials/base/images-0/text.png",
        "/run/ada/picture/trials/base/images-0/",
        "/run/ada/picture/trials/base/trial.json",
        "/run/ada/picture/sweep.yaml",
        "/run/ada/picture/trials/base/images-0/000-0.png?side=1",
        "/run/ada/picture/trials/base/images-0/000-0.png?side=",
        "/run/../run/ada/",
        "/run/.hidden/",
        "/run/%2e%2e/",
        "/run/..%2fruns%2fada/",
        "/run/nobody/",
        "/assets/x/../../sweep.yaml",
        "/assets/x/report.html.j2",
        "/ada/sweep.yaml",
        "/d",
        "//run/ada/",
        "http://127.0.0.1/run/ada/",
        "run/ada/",
        "*",
        "/card/best",
        "/?" + "&".join(f"a{i}=1" for i in range(60)),
    ],
)
def test_nothing_else_is_there(runs: Path, path: str) -> None:
    """No spelling of an address reaches another file, another folder, or a picture in a size that nobody asks for."""
    images = runs / "ada" / "trials" / "base" / "images-0"
    (images / "linked.png").symlink_to(runs / "ada" / "dataset" / "photo.png")
    (images / "text.png").write_text("no picture")
    shutil.copytree(runs / "ada", runs / ".hidden")
    answer = ask(site_of(runs), path)
    if path == "/d":  # any page of a Grafana is the live page
        assert answer.status == 302
        return
    assert answer.status == 404
    assert answer.body == b"there is nothing here\n"


def test_a_picture_is_sent_reduced_or_as_large_as_it_is_without_what_it_carries(tmp_path: Path) -> None:
    """A picture's text chunks stay behind; an address with a version is kept by the browser, one without is not."""
    run_dir = build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1, size=400)
    picture = run_dir / "trials" / "base" / "images-0" / "000-0.png"
    with Image.open(picture) as image:
        image.save(picture, exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0", pnginfo=None)
    site = site_of(run_dir)
    for query, side, kept in (("?v=1&side=256", 256, True), ("?v=1", 400, True), ("?side=2400", 400, False)):
        answer = ask(site, f"/run/ada/picture/trials/base/images-0/000-0.png{query}")
        assert answer.headers["Content-Type"] == "image/jpeg"
        assert ("immutable" in answer.headers["Cache-Control"]) == kept
        with Image.open(io.BytesIO(answer.body)) as sent:
            assert max(sent.size) == side
            assert "exif" not in sent.info


# --- what is not let in


def test_every_answer_forbids_what_no_page_needs(runs: Path) -> None:
    """Scripts of its own alone, no form, no sniffing, no referrer, and frames of this machine alone."""
    for target in ("/", "/run/ada/", "/run/ada/content", "/run/nobody/", "/d/x/", "/api/health"):
        headers = ask(site_of(runs), target).headers
        policy = headers["Content-Security-Policy"]
        assert "default-src 'none'" in policy
        assert "script-src 'self';" in policy
        assert policy.endswith(f"frame-ancestors {ON_THIS_MACHINE}")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cross-Origin-Resource-Policy"] == "same-origin"
    page = ask(site_of(runs), "/run/ada/")
    assert page.headers["Cache-Control"] == "no-store"
    assert not re.search(
        r"<script(?! src=| id=\S+ type=\"application/json\"| type=\"application/json\")", page.body.decode()
    )


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH", "TRACE", "BREW"])
def test_it_is_read_only(runs: Path, method: str) -> None:
    """Any other method is refused, whatever the address."""
    answer = ask(site_of(runs), "/run/ada/", method)
    assert answer.status == 405
    assert answer.headers["Allow"] == "GET, HEAD"


def test_a_name_that_another_site_could_have_is_refused() -> None:
    """A site whose name is turned to this machine would else read every page in its visitor's browser."""
    ours = ("127.0.0.1", "127.0.0.1:8266", "localhost:1", "LOCALHOST", "[::1]", "[::1]:8266", "127.9.9.9:80")
    theirs = (
        "",
        "evil.example",
        "evil.example:8266",
        "127.0.0.1.evil.example",
        "localhost.evil.example:1",
        "10.0.0.1",
        "::",
    )
    assert all(map(is_this_machine, ours))
    assert not any(map(is_this_machine, theirs))


def test_the_host_is_looked_at_before_anything_is_said(runs: Path) -> None:
    """The refusal says nothing of a run."""
    for target in ("/", "/run/ada/", "/api/health"):
        assert ask(site_of(runs), target, host="evil.example").status == 403
        assert ask(site_of(runs), target, host="localhost:9").status != 403


def test_with_a_token_every_other_address_has_nothing(runs: Path) -> None:
    """Not even which runs there are; only that a server is there."""
    site = site_of(runs, token="s3cret")  # noqa: S106
    for target in (
        "/",
        "/run/ada/",
        "/t/",
        "/t/s3cre/",
        "/t/s3cret2/run/ada/",
        "/t/%e9/",
        "/run/ada/content",
        "/api/",
    ):
        answer = ask(site, target, host="anything.example")
        assert (answer.status, answer.body) == (404, b"there is nothing here\n")
    for target in ("/api/health", "/api/v1/query"):  # which Ray asks by an address that others may read
        assert ask(site, target, host="anything.example").status == 200
    assert ask(site, "/t/s3cret/run/ada/", host="anything.example").status == 200
    assert ask(site, "/t/s3cret").status == 200
    assert ask(site, "/t/s3cret/d/x/?theme=dark").headers["Location"] == "/t/s3cret/run/ada/?theme=dark"


# --- following


def test_a_page_is_made_anew_when_its_files_have_changed_and_only_then(runs: Path) -> None:
    """Who has the newest already gets three words; a trial more gives another version, a second later."""
    clock = Clock()
    site = site_of(runs, clock)
    first = ask(site, "/run/ada/content")
    tag = first.headers["ETag"]
    assert first.headers["Cache-Control"] == "private, no-cache"
    same = ask(site, "/run/ada/content", if_none_match=f'"other", {tag}')
    assert (same.status, same.body, same.headers["ETag"]) == (304, b"", tag)
    write_trial(
        runs / "ada",
        {
            "trial": "lora_new",
            "method": "lora",
            "status": "finished",
            "config": {"method": "lora", "learning_rate": 1e-4},
        },
        [entry(200, 0.4, trial="lora_new")],
    )
    assert ask(site, "/run/ada/content", if_none_match=tag).status == 304, "at most once a second"
    clock.time += 1
    grown = ask(site, "/run/ada/content", if_none_match=tag)
    assert grown.status == 200
    assert b"lora_new" in grown.body
    assert b"lora_new" not in first.body
    assert b"5 of" not in ask(site, "/content").body


def test_a_driver_that_ends_is_seen(runs: Path) -> None:
    """No file that a page is made from changes, and yet nobody goes on with the run."""
    clock = Clock()
    site = site_of(runs, clock)
    with RunFolder(runs / "ada").lock():
        assert b"interrupted" not in ask(site, "/run/ada/content").body
    clock.time += 1
    assert b"interrupted" in ask(site, "/run/ada/content").body


def test_a_folder_may_still_be_empty_and_fills_itself(tmp_path: Path) -> None:
    """A head starts before the first sweep: runs appear as they come, and what is no run does not."""
    clock = Clock()
    site = site_of(tmp_path, clock)
    assert "No run yet" in ask(site, "/").body.decode()
    assert ask(site, "/card/best/").status == 200
    assert ask(site, "/d/x/").headers["Location"] == "/"
    (tmp_path / "notes").mkdir()
    build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1)
    clock.time += 1
    content = ask(site, "/content").body.decode()
    assert "run/ada/" in content
    assert "notes" not in content
    assert ask(site, "/d/x/").headers["Location"] == "/run/ada/"


def test_a_run_that_has_not_begun_is_waited_for(tmp_path: Path) -> None:
    """The driver's own page is there before the first file of its run."""
    clock = Clock()
    site = site_of(tmp_path / "ada", clock, is_run=True)
    assert "not there" in ask(site, "/run/ada/").body.decode()
    (tmp_path / "ada").mkdir()
    clock.time += 1
    waiting = ask(site, "/run/ada/")
    assert waiting.status == 200
    assert "has not written anything yet" in waiting.body.decode()
    assert 'http-equiv="refresh"' in waiting.body.decode()
    build_run(tmp_path / "ada", num_trials=1, images_per_prompt=1)
    clock.time += 1
    assert 'data-follow="content"' in ask(site, "/run/ada/").body.decode()


def later_release(run_dir: Path) -> None:
    path = next(run_dir.glob("trials/*/trial.json"))
    path.write_text(json.dumps({**json.loads(path.read_text()), "version": 99}))


def no_trial(run_dir: Path) -> None:
    next(run_dir.glob("trials/*/trial.json")).write_bytes(b"\xff{")


def no_sweep(run_dir: Path) -> None:
    (run_dir / "sweep.yaml").write_text("<script>alert(1)</script>: [")


@pytest.mark.parametrize("damage", [later_release, no_trial, no_sweep, shutil.rmtree])
def test_damage_is_said_and_goes_when_it_is_mended(runs: Path, damage: object) -> None:
    """A page that follows the run says what is wrong and goes on by itself; no folder of the machine is told."""
    clock = Clock()
    site = site_of(runs, clock)
    sound = ask(site, "/run/ada/content").headers["ETag"]
    shutil.copytree(runs / "ada", runs.parent / "kept")
    damage(runs / "ada")  # type: ignore[operator]
    clock.time += 1
    for target in ("/run/ada/content", "/run/ada/", "/content", "/", "/card/best/"):
        answer = ask(site, target)
        assert answer.status == 200
        assert "<script>alert" not in answer.body.decode()
        assert str(runs) not in answer.body.decode()
    assert ask(site, "/run/ada/content").headers["ETag"] != sound
    shutil.rmtree(runs / "ada", ignore_errors=True)
    shutil.copytree(runs.parent / "kept", runs / "ada")
    clock.time += 1
    assert "lora_r2" in ask(site, "/run/ada/content").body.decode()


def test_names_are_text(tmp_path: Path) -> None:
    """A folder's name is no markup, and one of bytes that are no UTF-8 has an address all the same."""
    names = ('a"><img src=x>', b"gr\xfcn".decode("utf-8", "surrogateescape"), "50%? #1 ü")
    for name in names:
        build_run(tmp_path / name, num_trials=1, images_per_prompt=1, name="plain")
    site = site_of(tmp_path)
    index = ask(site, "/").body.decode()
    assert "<img src=x>" not in index
    assert sum(answer.status != 200 for _, answer in walk(site, "/")) == 0
    for name in names:
        single = site_of(tmp_path / name)
        assert ask(single, ask(single, "/").headers["Location"]).status == 200


def test_answers_are_compressed_for_who_takes_it(runs: Path) -> None:
    """The same content in fewer bytes, under a version of its own; plotly.js shrinks to a third."""
    site = site_of(runs)
    for target in (
        "/run/ada/content",
        "/run/ada/",
        re.findall(r'src="../..(/assets[^"]*plotly[^"]*)"', ask(site, "/run/ada/").body.decode())[0],
    ):
        plain, packed = ask(site, target), ask(site, target, accept_encoding="br, gzip;q=0.5")
        assert "Content-Encoding" not in plain.headers
        assert packed.headers["Content-Encoding"] == "gzip"
        assert gzip.decompress(packed.body) == plain.body
        assert len(packed.body) < len(plain.body) / 2
        assert plain.headers["Vary"] == packed.headers["Vary"] == "Accept-Encoding"
        if "ETag" in plain.headers:
            assert plain.headers["ETag"] != packed.headers["ETag"]
            assert ask(site, target, if_none_match=packed.headers["ETag"]).status == 304
        assert "Content-Encoding" not in ask(site, target, accept_encoding="gzip;q=0").headers


# --- what Ray's dashboard asks


def test_rays_dashboard_finds_a_grafana_and_a_prometheus(runs: Path) -> None:
    """The two answers by which Ray 2.60 shows its Metrics tab; it gets no numbers that are not there."""
    site = site_of(runs)
    assert json.loads(ask(site, "/api/health").body)["database"] == "ok"
    answer = json.loads(ask(site, "/api/v1/query?query=vector(1)").body)
    assert answer["status"] == "success"
    assert answer["data"]["result"][0]["value"][1] == "1"
    assert json.loads(ask(site, "/api/v1/query?query=ray_x").body)["data"]["result"] == []


def test_its_frames_show_the_run_that_goes_on(runs: Path) -> None:
    """The Metrics tab the run at work, or all of several; the Overview a card each, in the dashboard's colours."""
    tab = "/d/rayDefaultDashboard/?orgId=1&theme=dark&kiosk=1&var-SessionName=session_x"
    clock = Clock()
    site = site_of(runs, clock)
    assert ask(site, tab).headers["Location"] == "/run/ada/?theme=dark"
    with RunFolder(runs / "bob").lock():
        clock.time += 1
        assert ask(site, tab).headers["Location"] == "/?theme=dark"
    assert ask(site_of(runs / "bob"), tab).headers["Location"] == "/run/bob/?theme=dark"
    for panel, said in (("24", "trials ended"), ("41", "face similarity"), ("7", "Metrics tab")):
        target = f"/d-solo/rayDefaultDashboard/default-dashboard?orgId=1&theme=light&panelId={panel}&var-datasource=P"
        page = ask(site, ask(site, target).headers["Location"]).body.decode()
        assert said in page
        assert 'data-theme="light"' in page


def test_a_grafana_of_the_users_own_is_left_alone() -> None:
    """Whoever named one sees it; a Prometheus that was named stays beside our page."""
    root, address = "http://127.0.0.1:8266", "http://127.0.0.1:8266/t/s3cret"
    wanted = {"RAY_GRAFANA_HOST": root, "RAY_GRAFANA_IFRAME_HOST": address, "RAY_PROMETHEUS_HOST": root}
    assert grafana.variables_for(root, address, {}) == wanted
    assert grafana.variables_for(root, address, {"RAY_GRAFANA_HOST": "http://grafana"}) == {}
    named = {"RAY_PROMETHEUS_HOST": "http://prometheus"}
    assert "RAY_PROMETHEUS_HOST" not in grafana.variables_for(root, address, named)
