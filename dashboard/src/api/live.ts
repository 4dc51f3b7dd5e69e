// A live job: one stream brings its state and its curves, another its events.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, type Job, type JobEvent, type Step } from "./client";
import { key } from "./key";
import { follow, type StreamState } from "./stream";

const ENDS = ["succeeded", "failed", "cancelled"];
const FRAME = 200; // milliseconds: updates in between are shown together
const RESOLUTION = 1000;

export interface LiveJob {
  job: Job | undefined;
  steps: readonly Step[];
  state: StreamState;
  error: Error | undefined;
}

/** The job and its steps, thinned by the service; a new `turn` reads again, after a resume. */
export function useLiveJob(id: string, turn: number): LiveJob {
  const [live, setLive] = useState<LiveJob>(NOTHING);
  const credentials = key.value;
  useEffect(() => {
    const controller = new AbortController();
    const next = { ...NOTHING };
    const show = throttle(() => setLive({ ...next }));
    const path = `/v1/jobs/${encodeURIComponent(id)}/metrics?resolution=${RESOLUTION}`;
    follow(path, {
      signal: controller.signal,
      isOver: () => next.job !== undefined && ENDS.includes(next.job.status),
      onState: (state) => ((next.state = state), show()),
      onMessage: ({ event, data }) => {
        const value = JSON.parse(data);
        if (event === "job") next.job = value;
        if (event === "series") next.steps = value;
        if (event === "steps") next.steps = [...next.steps, ...value];
        show();
      },
    }).catch((error) => ((next.error = error), show()));
    return () => (controller.abort(), show.cancel());
  }, [id, turn, credentials]);
  return live;
}

const NOTHING: LiveJob = { job: undefined, steps: [], state: "connecting", error: undefined };

/** The job's events so far, and new ones as they happen. */
export function useEvents(id: string, turn: number): readonly JobEvent[] {
  const [events, setEvents] = useState<readonly JobEvent[]>([]);
  const credentials = key.value;
  const source = `${id} ${credentials}`;
  const last = useRef<{ source: string; seq: string | null }>({ source, seq: null });
  useEffect(() => {
    const controller = new AbortController();
    if (last.current.source !== source) {
      last.current = { source, seq: null }; // after the last event, a stream sends nothing and never ends
      setEvents([]);
    }
    let ended = false;
    follow(`/v1/jobs/${encodeURIComponent(id)}/events`, {
      signal: controller.signal,
      isOver: () => ended,
      onState: () => undefined,
      lastEventId: () => last.current.seq,
      onMessage: ({ event, id: seq, data }) => {
        if (seq !== undefined) last.current.seq = seq;
        ended = ENDS.includes(event);
        setEvents((old) => [...old, JSON.parse(data)]);
      },
    }).catch((error) => {
      if (!(error instanceof ApiError)) throw error; // the other stream shows what the service answered
    });
    return () => controller.abort();
  }, [id, turn, credentials]);
  return events;
}

function throttle(act: () => void): (() => void) & { cancel: () => void } {
  let timer: ReturnType<typeof setTimeout> | undefined;
  const soon = () => {
    timer ??= setTimeout(() => ((timer = undefined), act()), FRAME);
  };
  return Object.assign(soon, { cancel: () => clearTimeout(timer) });
}
