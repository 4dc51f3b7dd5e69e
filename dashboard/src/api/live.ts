// A job as it goes: its row and its curves from one stream, its events from another.
import { useEffect, useRef, useState } from "preact/hooks";
import { ApiError, type Job, type JobEvent, type Step } from "./client";
import { key } from "./key";
import { follow, type StreamState } from "./stream";

const ENDS = ["succeeded", "failed", "cancelled"];
const FRAME = 200; // milliseconds: what comes in between is shown together
const RESOLUTION = 1000;

export interface LiveJob {
  job: Job | undefined;
  steps: readonly Step[];
  state: StreamState;
  error: Error | undefined;
}

/** The job and its steps, thinned by the service; `turn` begins anew, after a job is resumed. */
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
        const told = JSON.parse(data);
        if (event === "job") next.job = told;
        if (event === "series") next.steps = told;
        if (event === "steps") next.steps = [...next.steps, ...told];
        show();
      },
    }).catch((error) => ((next.error = error), show()));
    return () => (controller.abort(), show.cancel());
  }, [id, turn, credentials]);
  return live;
}

const NOTHING: LiveJob = { job: undefined, steps: [], state: "connecting", error: undefined };

/** The job's events so far, and those that follow. */
export function useEvents(id: string, turn: number): readonly JobEvent[] {
  const [events, setEvents] = useState<readonly JobEvent[]>([]);
  const credentials = key.value;
  const source = `${id} ${credentials}`;
  const last = useRef<{ source: string; seq: string | null }>({ source, seq: null });
  useEffect(() => {
    const controller = new AbortController();
    if (last.current.source !== source) {
      last.current = { source, seq: null }; // who has the end already would be told nothing, for ever
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
      if (!(error instanceof ApiError)) throw error; // the other stream tells what the service says
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
