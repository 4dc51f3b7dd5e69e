// Classifies the user's images with the tuned and with the hand-written prompt.
import { useEffect, useRef, useState } from "preact/hooks";
import { Link, useLocation } from "wouter-preact";
import { api, body, type Prompt } from "../api/client";
import { classify, parts, type LeftOut } from "../parts/prompts/classify";
import { Drop } from "../parts/forms/drop";
import { count } from "../parts/format";
import { TriedImage, type Tried } from "../parts/prompts/predictions";
import { byName } from "../parts/prompts/prompt";
import { decoded, promptPath, tryPath } from "../parts/prompts/refs";
import { Shown, useResource } from "../parts/resource";
import { useTitle } from "../parts/title";

const MOST = 100; // prompts to choose from

const NOTES: Record<LeftOut, string> = {
  calibrated: "Scores are not calibrated: this prompt has no temperature.",
  zeroShot: "No zero-shot predictions: this prompt's hand-written words cannot be encoded.",
};

let ids = 0;

export function TryPage({ reference }: { reference: string }) {
  useTitle("Try it");
  const prompts = useResource(async (signal) => {
    const params = { query: { limit: MOST } };
    return (await body(api.GET("/v1/prompts", { params, signal }))).data;
  }, []);
  return (
    <>
      <div class="title">
        <h1>Try it</h1>
      </div>
      <Shown of={prompts}>
        {(known) => {
          const [first] = known;
          return first === undefined ? (
            <Nothing />
          ) : (
            <Bench prompts={known} reference={decoded(reference) || first.name} />
          );
        }}
      </Shown>
    </>
  );
}

function Nothing() {
  return (
    <p class="card empty">
      There is no prompt to try yet. <Link href="/new-job">Tune one</Link> or{" "}
      <Link href="/prompts">import one</Link>.
    </p>
  );
}

function Bench({ prompts, reference: ref }: { prompts: Prompt[]; reference: string }) {
  const [, navigate] = useLocation();
  const [calibrated, setCalibrated] = useState(false);
  const bench = useBench(ref, calibrated);
  usePaste(bench.add);
  return (
    <>
      <section class="card" aria-label="Classify images">
        <div class="form">
          <PromptSelect
            prompts={prompts}
            value={ref}
            onValue={(chosen) => navigate(tryPath(chosen), { replace: true })}
          />
          <label class="check">
            <input
              type="checkbox"
              checked={calibrated}
              onChange={(event) => setCalibrated(event.currentTarget.checked)}
            />
            Calibrated scores
          </label>
          <p class="actions">
            <Link href={promptPath(ref)}>About this prompt</Link>
          </p>
        </div>
        <Drop accept="image/jpeg,image/png,image/webp" multiple onFiles={bench.add}>
          <strong>Drop images here, or choose or paste them</strong>
          <br />
          <small>JPEG, PNG or WebP; they are classified immediately and not stored</small>
        </Drop>
      </section>
      <Outcome bench={bench} />
      <ul class="bench">
        {bench.images.map((tried) => (
          <TriedImage key={tried.id} tried={tried} onRemove={() => bench.remove(tried)} />
        ))}
      </ul>
    </>
  );
}

interface SelectProps {
  prompts: Prompt[];
  value: string;
  onValue: (ref: string) => void;
}

function PromptSelect({ prompts, value, onValue }: SelectProps) {
  const groups = byName(prompts).map(([name, versions]) => ({
    name,
    options: optionsOf(name, versions),
  }));
  const isListed = groups.some(({ options }) => options.some(([ref]) => ref === value));
  return (
    <label>
      Prompt
      <select value={value} onChange={(event) => onValue(event.currentTarget.value)}>
        {!isListed && <option value={value}>{value}</option>}
        {groups.map(({ name, options }) => (
          <optgroup key={name} label={name}>
            {options.map(([ref, label]) => (
              <option key={ref} value={ref}>
                {label}
              </option>
            ))}
          </optgroup>
        ))}
      </select>
    </label>
  );
}

function optionsOf(name: string, versions: Prompt[]): (readonly [ref: string, label: string])[] {
  const aliases = versions.flatMap(({ aliases: known, version }) =>
    known.map((alias) => [`${name}@${alias}`, `${name} @${alias} (v${version})`] as const),
  );
  const numbered = versions.map(
    ({ version }) => [`${name}:${version}`, `${name} v${version}`] as const,
  );
  return [[name, `${name}, newest (v${versions[0]?.version})`], ...aliases, ...numbered];
}

interface Bench {
  images: Tried[];
  notes: Set<LeftOut>;
  error: Error | undefined;
  /** The prompt and the time of the last classification. */
  done: { prompt: string; seconds: number } | undefined;
  add: (files: File[]) => void;
  remove: (tried: Tried) => void;
  clear: () => void;
}

/** Images, classified when they are added and again when the prompt or an option changes. */
function useBench(ref: string, calibrated: boolean): Bench {
  const [images, setImages] = useState<Tried[]>([]);
  const [notes, setNotes] = useState(new Set<LeftOut>());
  const [error, setError] = useState<Error>();
  const [done, setDone] = useState<Bench["done"]>();
  const kept = useRef(images); // current at once, unlike the state
  const running = useRef(new AbortController());

  const keep = (next: Tried[]) => {
    kept.current = next;
    setImages(next);
  };
  const settle = (asked: Tried[], results: readonly Tried["result"][]) => {
    const found = new Map(asked.map(({ id }, index) => [id, results[index]]));
    keep(
      kept.current.map((tried) =>
        found.has(tried.id) ? { ...tried, result: found.get(tried.id) } : tried,
      ),
    );
  };
  const run = async (wanted: Tried[]) => {
    const { signal } = running.current;
    const began = performance.now();
    setError(undefined);
    const question = { ref, calibrated, zeroShot: true };
    const leaveOut = (what: LeftOut) => {
      question[what] = false; // in the requests that follow, too
      setNotes((old) => new Set(old).add(what));
    };
    try {
      for (const part of parts(wanted)) {
        const files = part.map(({ file }) => file);
        const { name, version, results } = await classify(files, question, signal, leaveOut);
        settle(part, results);
        const seconds = (performance.now() - began) / 1000;
        setDone({ prompt: `${name} v${version}`, seconds });
      }
    } catch (failed) {
      if (!signal.aborted) setError(failed as Error);
    }
  };

  const stop = () => {
    running.current.abort();
    running.current = new AbortController();
    setNotes(new Set<LeftOut>());
    setError(undefined);
    setDone(undefined);
  };
  useEffect(() => {
    stop();
    if (kept.current.length === 0) return;
    const again = kept.current.map((tried) => ({ ...tried, result: undefined }));
    keep(again);
    void run(again);
  }, [ref, calibrated]);
  useEffect(
    () => () => {
      running.current.abort();
      for (const { url } of kept.current) URL.revokeObjectURL(url);
    },
    [],
  );

  const add = (files: File[]) => {
    const added = files.map((file) => {
      return { id: ++ids, file, url: URL.createObjectURL(file), result: undefined };
    });
    keep([...added, ...kept.current]);
    void run(added);
  };
  const remove = (tried: Tried) => {
    URL.revokeObjectURL(tried.url);
    keep(kept.current.filter(({ id }) => id !== tried.id));
  };
  const clear = () => {
    stop();
    for (const { url } of kept.current) URL.revokeObjectURL(url);
    keep([]);
  };
  return { images, notes, error, done, add, remove, clear };
}

function usePaste(add: (files: File[]) => void) {
  const latest = useRef(add);
  latest.current = add;
  useEffect(() => {
    const paste = (event: ClipboardEvent) => {
      const files = [...(event.clipboardData?.files ?? [])];
      const images = files.filter(({ type }) => type.startsWith("image/"));
      if (images.length > 0) latest.current(images);
    };
    document.addEventListener("paste", paste);
    return () => document.removeEventListener("paste", paste);
  }, []);
}

function Outcome({ bench: { images, notes, error, done, clear } }: { bench: Bench }) {
  const answered = images.filter(({ result }) => result !== undefined);
  const failed = answered.filter(({ result }) => result?.error);
  return (
    <>
      <div class="outcome">
        <p aria-live="polite">
          {done !== undefined && answered.length > 0 && (
            <>
              {plural(answered.length - failed.length)} classified with{" "}
              <strong>{done.prompt}</strong>
              {failed.length > 0 && `, ${failed.length} could not be read`} ·{" "}
              {milliseconds(done.seconds)}
            </>
          )}
        </p>
        {images.length > 0 && (
          <button class="quiet small" onClick={clear}>
            Clear
          </button>
        )}
      </div>
      {[...notes].map((what) => (
        <p key={what} class="note" role="status">
          {NOTES[what]}
        </p>
      ))}
      {error !== undefined && (
        <p class="notice bad" role="alert">
          <span>{error.message}</span>
        </p>
      )}
    </>
  );
}

function plural(images: number): string {
  return `${count(images)} image${images === 1 ? "" : "s"}`;
}

function milliseconds(seconds: number): string {
  return seconds < 1 ? `${Math.round(1000 * seconds)} ms` : `${seconds.toFixed(1)} s`;
}
