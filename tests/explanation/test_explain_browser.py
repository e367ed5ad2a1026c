"""The page in a browser: what its scripts make of the data, without one error."""

import shutil
import subprocess
from pathlib import Path
from urllib.parse import quote

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import functional_bp as bp

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), ""
)
pytestmark = pytest.mark.skipif(not BROWSER, reason="no Chromium on this machine")

# Errors become text of the page, before its own scripts run.
CATCH = """<script>addEventListener("error", (e) => {
  const at = document.createElement("p"); at.className = "raised"; at.textContent = e.message;
  document.documentElement.append(at); });</script>"""


def network(x, w):
    with jax.named_scope("encoder"):
        h = bp.name(jnp.tanh(x @ w), "h<1>")
    with jax.named_scope("loss"):
        return jnp.sum(jnp.log(h) * 0.0 + h**2)


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> Path:
    e = bp.explain(network, np.array([[0.0, 0.0, 0.0], [1.0, 2.0, 3.0]]), np.full((3, 2), 0.1))
    file = tmp_path_factory.mktemp("page") / "page.html"
    text = e.html()
    file.write_text(text.replace("<head>", "<head>" + CATCH), encoding="utf-8")
    return file


def shown(file: Path, *, script: str = "", **wish: str) -> str:
    """The document after its scripts have run, and then another script."""
    text = file.read_text(encoding="utf-8")
    other = file.with_name("other.html")
    other.write_text(text.replace("</body>", f"<script>{script}</script></body>"), encoding="utf-8")
    place = other.as_uri() + "#" + "&".join(f"{key}={quote(value)}" for key, value in wish.items())
    flags = ["--headless", "--no-sandbox", "--disable-gpu", "--force-prefers-reduced-motion"]
    flags += ["--virtual-time-budget=4000", f"--user-data-dir={file.parent / 'profile'}"]
    command = [BROWSER, *flags, "--dump-dom", place]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert 'class="raised"' not in done.stdout.replace(CATCH, ""), done.stdout[-300:]
    return done.stdout


def test_an_error_in_a_script_is_seen(page):
    with pytest.raises(AssertionError):
        shown(page, script="nothing_of_that_name()")


def test_the_whole_graph_is_drawn_with_its_scopes(page):
    document = shown(page)
    assert document.count('class="card scope') == 2
    assert "The first value that is not finite" in document


def test_a_scope_is_shown_alone(page):
    document = shown(page, **{"in": "encoder"})
    assert 'class="card scope' not in document and document.count('class="card operator') == 2
    assert "tanh" in document and "to loss" in document


def test_a_name_is_found_and_selected(page):
    script = (
        'find("h<1>"); const best = document.querySelector("#found li"); '
        "document.title = best.textContent; best.click();"
    )
    document = shown(page, script=script)
    assert "<title>h&lt;1&gt;" in document
    assert '<span class="label">encoder</span>' in document
    panel = document[document.index('id="panel"') :]
    assert "made by tanh" in panel and "f64[2,2]" in panel


@pytest.mark.parametrize("colour", ["memory", "flops", "gradient"])
def test_each_colour_has_a_legend(page, colour):
    document = shown(page, colour=colour)
    assert f'data-mode="{colour}" aria-checked="true"' in document
    assert "tinted" in document or "nothing" in document or "broken" in document
    legend = document[document.index('id="legend"') : document.index('id="zoom"')]
    words = {"memory": "Kept", "flops": "operations", "gradient": "log scale"}
    assert words[colour] in legend


def test_light_and_dark(page):
    assert 'data-theme="light"' in shown(page, theme="light")
    assert 'data-theme="dark"' in shown(page, theme="dark")


@pytest.mark.parametrize(
    "typed, best",
    [("params w", "params['dense'][0]['W']"), ("dense[0].w", "params['dense'][0]['W']")],
)
def test_a_parameter_is_found_by_the_words_of_its_path(tmp_path, typed, best):
    params = {"dense": [{"W": np.ones((2, 2))}, {"W": np.ones((2, 2))}]}

    def layers(params, x):
        for p in params["dense"]:
            x = jnp.sin(x @ p["W"])
        return jnp.sum(x)

    file = tmp_path / "page.html"
    file.write_text(bp.explain(layers, params, np.ones(2)).html(), encoding="utf-8")
    script = f'find("{typed}"); document.title = document.querySelector("#found li b").textContent'
    assert f"<title>{best}</title>" in shown(file, script=script)


def test_a_name_that_is_not_there_is_said_to_be_missing(page):
    assert "nothing of that name" in shown(page, script='find("decoder")').split("<main")[0]
