// The frame around every page: navigation, notices and the key.
import { useEffect, useRef } from "preact/hooks";
import { Link, Route, Router, Switch, useLocation } from "wouter-preact";
import { useHashLocation } from "wouter-preact/use-hash-location";
import { KeyButton, KeyDialog } from "./parts/forms/key";
import { Notices } from "./parts/notices";
import { ThemeButton } from "./parts/theme";
import { useTitle } from "./parts/title";
import { ComparePage } from "./pages/compare";
import { DatasetPage } from "./pages/dataset";
import { DatasetsPage } from "./pages/datasets";
import { JobPage } from "./pages/job";
import { JobsPage } from "./pages/jobs";
import { NewJobPage } from "./pages/new-job";
import { PromptPage } from "./pages/prompt";
import { PromptsPage } from "./pages/prompts";
import { TryPage } from "./pages/try";

const SECTIONS = [
  ["/jobs", "Jobs"],
  ["/compare", "Compare"],
  ["/datasets", "Datasets"],
  ["/prompts", "Prompts"],
  ["/try", "Try it"],
] as const;

export function App() {
  return (
    <Router hook={useHashLocation}>
      <a class="skip" href="#main" onClick={skipToMain}>
        Skip to content
      </a>
      <Header />
      <main id="main" tabIndex={-1}>
        <Pages />
      </main>
      <Notices />
      <KeyDialog />
    </Router>
  );
}

function Header() {
  const [location] = useLocation();
  return (
    <header class="top">
      <Link href="/jobs" class="brand">
        <BrandMark /> SharpZO
      </Link>
      <nav aria-label="Sections">
        {SECTIONS.map(([path, label]) => {
          const here = location.startsWith(path) || (path === "/jobs" && location === "/");
          return (
            <Link key={path} href={path} aria-current={here ? "page" : undefined}>
              {label}
            </Link>
          );
        })}
      </nav>
      <div class="tools">
        <a href="/docs" target="_blank">
          API
        </a>
        <KeyButton />
        <ThemeButton />
      </div>
    </header>
  );
}

function BrandMark() {
  return (
    <svg viewBox="0 0 32 32" width="22" height="22" aria-hidden="true">
      <path class="mark-line" d="M3 6c8 0 8 17 13 17S21 6 29 6" />
      <circle class="mark-point" cx="16" cy="23" r="4" />
    </svg>
  );
}

function Pages() {
  const [location] = useLocation();
  useFocusOnChange(location);
  return (
    <Switch>
      <Route path="/new-job/:dataset?">
        {({ dataset }) => <NewJobPage dataset={dataset ?? ""} />}
      </Route>
      <Route path="/jobs/:id">{({ id }) => <JobPage key={id} id={id} />}</Route>
      <Route path="/compare/:jobs?">{({ jobs }) => <ComparePage chosen={jobs ?? ""} />}</Route>
      <Route path="/datasets" component={DatasetsPage} />
      <Route path="/datasets/:id">{({ id }) => <DatasetPage key={id} id={id} />}</Route>
      <Route path="/prompts" component={PromptsPage} />
      <Route path="/prompts/:ref">{({ ref }) => <PromptPage key={ref} reference={ref} />}</Route>
      <Route path="/try/:ref?">{({ ref }) => <TryPage reference={ref ?? ""} />}</Route>
      <Route path="/jobs" component={JobsPage} />
      <Route path="/" component={JobsPage} />
      <Route component={NoPage} />
    </Switch>
  );
}

function NoPage() {
  useTitle("No such page");
  return (
    <>
      <h1>No such page</h1>
      <p>
        <Link href="/jobs">All jobs</Link>
      </p>
    </>
  );
}

/** Focus the new page, so that a screen reader announces it and the keyboard starts at its top. */
function useFocusOnChange(location: string) {
  const shown = useRef(location);
  useEffect(() => {
    if (shown.current === location) return;
    shown.current = location;
    scrollTo(0, 0);
    document.getElementById("main")?.focus({ preventScroll: true });
  }, [location]);
}

function skipToMain(event: Event) {
  event.preventDefault(); // the hash is the page's address
  document.getElementById("main")?.focus();
}
