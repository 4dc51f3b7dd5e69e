// Data of the service that a page shows: fetched, refreshed, and reported when that fails.
import type { ComponentChildren } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { isRefusal } from "../api/client";
import { key } from "../api/key";

export interface Resource<T> {
  value: T | undefined;
  error: Error | undefined;
  /** Fetch it again now. */
  reload: () => void;
}

interface State<T> {
  value?: T;
  error?: Error;
}

/**
 * What `load` returns. It is called again when `inputs` or the key change, and every `everySeconds`
 * while the page is visible, unless a request is under way or the service refused the last one. A
 * new call aborts the one before.
 */
export function useResource<T>(
  load: (signal: AbortSignal) => Promise<T>,
  inputs: readonly unknown[],
  everySeconds?: number | ((value: T | undefined) => number | undefined),
): Resource<T> {
  const [state, setState] = useState<State<T>>({});
  const [turn, setTurn] = useState(0);
  const latest = useRef(load);
  const waiting = useRef(false);
  latest.current = load;
  const reload = useCallback(() => setTurn((n) => n + 1), []);
  const credentials = key.value;

  useEffect(() => setState({}), [credentials, ...inputs]);
  useEffect(() => {
    const controller = new AbortController();
    const settle = (next: (old: State<T>) => State<T>) => {
      if (controller.signal.aborted) return;
      waiting.current = false;
      setState(next);
    };
    waiting.current = true;
    latest.current(controller.signal).then(
      (value) => settle(() => ({ value })),
      (error) => settle((old) => ({ ...old, error: asError(error) })),
    );
    return () => controller.abort();
  }, [credentials, turn, ...inputs]);

  const wanted = typeof everySeconds === "function" ? everySeconds(state.value) : everySeconds;
  const seconds = isRefusal(state.error) ? undefined : wanted;
  useEffect(() => {
    if (seconds === undefined) return;
    const again = () => document.hidden || waiting.current || reload();
    const timer = setInterval(again, seconds * 1000);
    return () => clearInterval(timer);
  }, [seconds]);
  return { value: state.value, error: state.error, reload };
}

function asError(error: unknown): Error {
  return error instanceof Error ? error : new Error(String(error));
}

interface ShownProps<T> {
  of: Resource<T>;
  children: (value: T) => ComponentChildren;
}

/** The resource once it is loaded; before that, or if loading failed, a message. */
export function Shown<T>({ of, children }: ShownProps<T>) {
  return (
    <>
      {of.error !== undefined && (
        <p class="notice bad" role="alert">
          <span>{of.error.message}</span>
          <button class="quiet" onClick={of.reload}>
            Try again
          </button>
        </p>
      )}
      {of.value !== undefined ? children(of.value) : of.error === undefined && <Waiting />}
    </>
  );
}

export function Waiting() {
  return (
    <p class="waiting" role="status">
      Loading…
    </p>
  );
}
