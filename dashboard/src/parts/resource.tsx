// Something of the service's that a page shows: fetched, looked at again, and told when it fails.
import type { ComponentChildren } from "preact";
import { useCallback, useEffect, useRef, useState } from "preact/hooks";
import { key } from "../api/key";

export interface Resource<T> {
  value: T | undefined;
  error: Error | undefined;
  /** Fetch anew, at once. */
  reload: () => void;
}

/**
 * What `load` gives. It is called again when `inputs` or the key change, and after `everySeconds`
 * while the page is visible; a newer call ends an older one.
 */
export function useResource<T>(
  load: (signal: AbortSignal) => Promise<T>,
  inputs: readonly unknown[],
  everySeconds?: number | ((value: T | undefined) => number | undefined),
): Resource<T> {
  const [state, setState] = useState<{ value?: T; error?: Error }>({});
  const [turn, setTurn] = useState(0);
  const latest = useRef(load);
  latest.current = load;
  const reload = useCallback(() => setTurn((n) => n + 1), []);
  const credentials = key.value;

  useEffect(() => setState({}), [credentials, ...inputs]);
  useEffect(() => {
    const controller = new AbortController();
    latest.current(controller.signal).then(
      (value) => controller.signal.aborted || setState({ value }),
      (error) =>
        controller.signal.aborted || setState((old) => ({ ...old, error: asError(error) })),
    );
    return () => controller.abort();
  }, [credentials, turn, ...inputs]);

  const seconds = typeof everySeconds === "function" ? everySeconds(state.value) : everySeconds;
  useEffect(() => {
    if (seconds === undefined) return;
    const timer = setInterval(() => document.hidden || reload(), seconds * 1000);
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

/** The resource when it is there, and what is known until then. */
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
