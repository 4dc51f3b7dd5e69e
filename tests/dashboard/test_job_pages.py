"""Jobs in the browser: the list, live curves, what may be done, comparison."""

from __future__ import annotations

import re

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.dashboard.conftest import OpenPage, picture
from tests.faults.cluster import ENDLESS, Cluster

pytestmark = [pytest.mark.needs("chromium"), pytest.mark.timeout(300)]

STEPS = re.compile(r"step (\d+) to (\d+)")


def steps_drawn(page: Page, title: str = "Loss") -> int:
    """The last step that the chart of that title shows, as it tells a screen reader."""
    label = (
        page.locator("figure", has_text=title).first.get_by_role("img").get_attribute("aria-label")
    )
    found = STEPS.search(label or "")
    return 0 if found is None else int(found[2])


def wait_for_steps(page: Page, more_than: int) -> int:
    """The last step drawn, once it is beyond that."""
    page.wait_for_function(
        """([more]) => {
            const label = document.querySelector("figure [role=img]")?.ariaLabel ?? "";
            const found = /to (\\d+)/.exec(label);
            return found !== null && Number(found[1]) > more;
        }""",
        arg=[more_than],
    )
    return steps_drawn(page)


def test_curves_move_and_survive_the_api_s_restart(cluster: Cluster, open_page: OpenPage) -> None:
    job = cluster.submit(**ENDLESS)
    page = open_page(f"/jobs/{job.id}")
    first = wait_for_steps(page, 0)
    further = wait_for_steps(page, first)
    picture(page, "job-live-1280-light")
    assert cluster.api is not None
    cluster.api.kill()
    expect(page.get_by_text("Connection lost")).to_be_visible()
    cluster.start_api()
    expect(page.get_by_text("Connection lost")).to_be_hidden()
    after = wait_for_steps(page, further)
    assert after > further > first
    events = page.locator(".events li strong").all_inner_texts()
    assert events[::-1] == [event.type for event in cluster.events(job.id)][: len(events)]

    page.get_by_role("button", name="Pause").click()
    expect(page.locator(".status")).to_have_text("paused")
    page.get_by_role("button", name="Resume").click()
    expect(page.locator(".status")).to_contain_text("running")
    wait_for_steps(page, after)
    page.get_by_role("button", name="Cancel").click()
    expect(page.locator(".status")).to_have_text("cancelled")
    page.get_by_role("button", name="Delete").click()
    page.get_by_role("dialog").get_by_role("button", name="Delete").click()
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    assert job.id not in [other.id for other in cluster.client.jobs.list()]


def test_a_job_finishes_early_at_the_press_of_a_button(
    cluster: Cluster, open_page: OpenPage
) -> None:
    job = cluster.submit(**ENDLESS)
    page = open_page(f"/jobs/{job.id}")
    wait_for_steps(page, 0)
    page.get_by_role("button", name="Finish now").click()
    expect(page.locator(".status")).to_have_text("succeeded")
    expect(page.get_by_role("button", name="Finish now")).to_be_hidden()
    expect(page.get_by_label("Summary")).to_contain_text("finished early, as asked")
    expect(page.locator(".events")).to_contain_text("asked to finish with the best prompt so far")
    assert cluster.client.jobs.get(job.id).stopped_by == "finished"


def test_a_job_shows_how_its_prompt_was_found(cluster: Cluster, open_page: OpenPage) -> None:
    job = cluster.wait_until_ended(cluster.submit(name="explained").id)
    selected = job.metrics.selected_step
    assert selected is not None
    page = open_page(f"/jobs/{job.id}")
    loss = page.get_by_role("img", name="Loss, step 1 to 40")
    expect(loss).to_have_accessible_name(re.compile(f"selected: step {selected}$"))
    facts = page.get_by_label("Summary").locator(".fact", has_text="Selected step")
    expect(facts.locator("dd")).to_have_text(str(selected))
    expect(page.locator(".events")).to_contain_text("entered Gauss-Newton at step")

    changed = page.get_by_role("region", name="Configuration").locator("div:has(strong) > dt")
    expect(changed).to_have_text(
        ["shots", "total_steps", "change_point", "prompt.intrinsic_dim", "cma.population_size"]
    )
    picture(page, "job-explained-1280-light")


def test_the_axis_of_curves_is_remembered(cluster: Cluster, open_page: OpenPage) -> None:
    job = cluster.wait_until_ended(cluster.submit(name="measured").id)
    steps = cluster.client.jobs.metrics(job.id)
    passes = {step.step: step.forward_passes for step in steps}
    page = open_page(f"/jobs/{job.id}")
    expect(page.get_by_role("img", name="Forward passes, step 1 to 40")).to_be_visible()
    page.get_by_label("Over").select_option(label="forward passes")
    page.reload()
    span = f"forward passes {passes[1]} to {passes[40]}"
    loss = page.get_by_role("img", name=f"Loss, {span}")
    expect(loss).to_be_visible()
    expect(page.get_by_role("img", name=f"Steps, {span}")).to_be_visible()
    if selected := job.metrics.selected_step:
        expect(loss).to_have_accessible_name(
            re.compile(f"selected: forward passes {passes[int(selected)]}$")
        )
    page.goto(f"/#/compare/{job.id}")
    expect(page.get_by_role("img", name=f"Validation accuracy, {span}")).to_be_visible()


def test_every_page_has_its_own_title(cluster: Cluster, open_page: OpenPage) -> None:
    job = cluster.submit(name="titled")
    dataset = cluster.client.datasets.get(cluster.dataset_id)
    page = open_page("/jobs")
    for path, title in {
        "/jobs": "Jobs",
        "/compare": "Compare",
        "/datasets": "Datasets",
        "/prompts": "Prompts",
        "/try": "Try it",
        "/new-job": "New job",
        "/nowhere": "No such page",
        f"/jobs/{job.id}": "\u2068titled\u2069",
        f"/datasets/{cluster.dataset_id}": f"\u2068{dataset.name}\u2069",
    }.items():
        page.goto(f"/#{path}")
        expect(page).to_have_title(f"{title} · SharpZO")
    cluster.client.jobs.cancel(job.id)


def test_jobs_are_chosen_in_the_list_and_compared(cluster: Cluster, open_page: OpenPage) -> None:
    made = [cluster.submit(name=f"compared-{seed}", seed=seed) for seed in (1, 2)]
    for job in made:
        cluster.wait_until_ended(job.id)
    page = open_page("/jobs")
    for job in made:
        page.get_by_label(f"Compare {job.name}").check()
    page.get_by_role("button", name="Compare (2)").click()
    chart = page.get_by_role("img", name="Validation accuracy")
    for job in made:
        expect(chart).to_have_accessible_name(re.compile(f"{job.name} · {job.id[-6:]}: from"))
    page.get_by_label("Measure").select_option(label="Training loss")
    page.get_by_label("Over").select_option(label="step")
    expect(page.get_by_role("img", name="Training loss, step")).to_be_visible()
    differences = page.get_by_role("region", name="Settings that differ")
    assert differences.get_by_role("rowheader").all_inner_texts() == ["seed"]
    picture(page, "compare-1280-light")
    page.get_by_role("button", name=f"Remove {made[0].name}").click()
    expect(page.get_by_role("region", name="Compared jobs").get_by_role("row")).to_have_count(2)


def test_a_job_that_is_gone_does_not_hide_those_it_is_compared_with(
    cluster: Cluster, open_page: OpenPage
) -> None:
    kept, gone = (cluster.submit(name=f"there-{seed}", seed=seed) for seed in (1, 2))
    for job in (kept, gone):
        cluster.wait_until_ended(job.id)
    cluster.client.jobs.delete(gone.id)
    page = open_page(f"/compare/{kept.id},{gone.id}")
    expect(page.get_by_role("alert")).to_contain_text(gone.id)
    compared = page.get_by_role("region", name="Compared jobs").first
    expect(compared.get_by_role("link")).to_have_attribute("href", f"#/jobs/{kept.id}")
    page.get_by_role("button", name=f"Remove {gone.id}").click()
    expect(page.get_by_role("alert")).to_have_count(0)
    assert page.url.endswith(f"/compare/{kept.id}")


def test_a_request_that_is_refused_is_told_and_lost_to_nobody(
    cluster: Cluster, open_page: OpenPage
) -> None:
    page = open_page(f"/new-job/{cluster.dataset_id}")
    page.get_by_label("Other hyperparameters").fill('{"cma": {"sigma": -1}}')
    page.get_by_role("button", name="Start tuning").click()
    expect(page.get_by_role("alert")).to_contain_text("/config/cma/sigma")
    page.get_by_label("Other hyperparameters").fill("{")
    page.get_by_role("button", name="Start tuning").click()
    expect(page.get_by_role("alert")).to_contain_text("is not valid JSON")
    page.get_by_label("Other hyperparameters").fill('{"head": "none"}')
    page.get_by_label("Maximum steps").fill("12")
    page.get_by_label("Shots per class").fill("2")
    page.get_by_role("button", name="Start tuning").click()
    expect(page.locator(".status")).to_have_text("succeeded", timeout=120_000)
    job = cluster.client.jobs.get(page.url.rsplit("/", 1)[1])
    config = job.config
    assert (config["head"], config["total_steps"], config["shots"]) == ("none", 12, 2)


def test_a_request_whose_answer_is_lost_starts_one_job(
    cluster: Cluster, open_page: OpenPage
) -> None:
    page = open_page(f"/new-job/{cluster.dataset_id}")
    taken = 0

    def lose_the_first_answer(route: Route) -> None:
        nonlocal taken
        taken += 1
        answer = route.fetch()
        if taken == 1:
            route.abort("connectionclosed")
        else:
            route.fulfill(response=answer)

    page.route("**/v1/jobs", lose_the_first_answer)
    page.get_by_label("Name of the prompt").fill("asked-twice")
    page.get_by_label("Maximum steps").fill("12")
    page.get_by_label("Shots per class").fill("2")
    start = page.get_by_role("button", name="Start tuning")
    start.click()
    expect(page.get_by_role("alert")).to_be_visible()
    start.click()
    expect(page.get_by_role("heading", level=1)).to_have_text("asked-twice")
    assert taken == 2
    assert [job.name for job in cluster.client.jobs.list()].count("asked-twice") == 1


def test_a_job_that_does_not_exist(open_page: OpenPage) -> None:
    page = open_page("/jobs/job_01m8b7hcz6x9wwpehzgwd06yy4")
    expect(page.get_by_role("alert")).to_contain_text("no such job")


@pytest.mark.fast
def test_pages_are_walked_by_keyboard(cluster: Cluster, open_page: OpenPage) -> None:
    page = open_page("/jobs")
    expect(page.get_by_role("heading", level=1)).to_have_text("Jobs")
    page.keyboard.press("Tab")
    expect(page.get_by_text("Skip to content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    for name in ("Compare", "Datasets", "Prompts", "Try it"):
        page.get_by_role("link", name=name, exact=True).focus()
        page.keyboard.press("Enter")
        expect(page.locator("main")).to_be_focused()
        expect(page.get_by_role("link", name=name, exact=True)).to_have_attribute(
            "aria-current", "page"
        )


def test_a_slow_answer_is_waited_for(cluster: Cluster, open_page: OpenPage) -> None:
    """The list looks again every two seconds, and this answer takes three."""
    job = cluster.submit(name="slowly-told")
    page = open_page("/nowhere")
    page.add_init_script("""
        const now = window.fetch;
        window.fetch = async (input, init) => {
            if (new URL(input.url).pathname === "/v1/jobs") {
                await new Promise((answered) => setTimeout(answered, 3000));
            }
            return now(input, init);
        };
    """)
    page.goto("/")
    expect(page.locator(f'a[href="#/jobs/{job.id}"]')).to_be_visible(timeout=30_000)


def hide(page: Page, *, hidden: bool) -> None:
    """Have the page think that its tab is behind another, or before."""
    page.evaluate(
        """(hidden) => {
            Object.defineProperty(document, "hidden", { configurable: true, value: hidden });
            document.dispatchEvent(new Event("visibilitychange"));
        }""",
        hidden,
    )


def test_pages_that_nobody_sees_leave_connections_to_others(
    cluster: Cluster, browser: Browser
) -> None:
    job = cluster.submit(**ENDLESS)
    context = browser.new_context(base_url=cluster.url)
    pages = [context.new_page() for _ in range(4)]
    for page in pages:  # two streams each, and a browser has six connections
        page.goto(f"/#/jobs/{job.id}")
        wait_for_steps(page, 0)
        hide(page, hidden=True)
    before = steps_drawn(pages[0])
    hide(pages[0], hidden=False)
    wait_for_steps(pages[0], before)
    expect(pages[0].locator(".events li strong", has_text="queued")).to_have_count(1)
    context.close()
    cluster.client.jobs.cancel(job.id)


def test_the_theme_is_kept(open_page: OpenPage) -> None:
    page = open_page("/jobs")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = page.evaluate(colour)
    page.get_by_role("button", name="Theme: auto").click()
    page.get_by_role("button", name="Theme: light").click()
    dark = page.evaluate(colour)
    assert dark != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark")).to_be_visible()
    assert page.evaluate(colour) == dark


def test_the_api_has_its_own_page(open_page: OpenPage) -> None:
    page = open_page()
    page.goto("/docs")
    expect(page.get_by_text("/v1/jobs/{job_id}/metrics")).to_be_visible()
    picture(page, "docs-1280-light")
