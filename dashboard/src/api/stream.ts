// Server-sent events by fetch: the browser's own EventSource cannot send a key.
import { EventSourceParserStream } from "eventsource-parser/stream";
import { fetchRaw, isRefusal } from "./client";

const FIRST_PAUSE = 500; // milliseconds
const LONGEST_PAUSE = 5_000;

export interface Message {
  event: string;
  id: string | undefined;
  data: string;
}

export type StreamState = "connecting" | "live" | "lost" | "ended";

interface Options {
  signal: AbortSignal;
  onMessage: (message: Message) => void;
  onState: (state: StreamState) => void;
  /** Whether the stream is complete, once the server has ended it. */
  isOver: () => boolean;
  /** Continue after this event; null starts at the beginning. */
  lastEventId?: () => string | null;
}

/**
 * Read a stream to its end and reconnect whenever it breaks.
 *
 * A hidden page reads nothing: all tabs share six connections to a service, and streams hold them.
 *
 * @throws ApiError if the service refuses.
 */
export async function follow(path: string, options: Options): Promise<void> {
  const { signal, onState } = options;
  let pause = FIRST_PAUSE;
  onState("connecting");
  while (!signal.aborted) {
    await untilSeen(signal);
    const away = new AbortController();
    const look = () => document.hidden && away.abort();
    document.addEventListener("visibilitychange", look);
    try {
      await read(path, options, AbortSignal.any([signal, away.signal]), () => {
        pause = FIRST_PAUSE;
        onState("live");
      });
      if (options.isOver()) {
        onState("ended");
        return;
      }
    } catch (error) {
      if (signal.aborted) return;
      if (away.signal.aborted) continue;
      if (isRefusal(error)) throw error;
    } finally {
      document.removeEventListener("visibilitychange", look);
    }
    onState("lost");
    await sleep(pause, signal);
    pause = Math.min(2 * pause, LONGEST_PAUSE);
  }
}

async function read(
  path: string,
  options: Options,
  signal: AbortSignal,
  onOpen: () => void,
): Promise<void> {
  const last = options.lastEventId?.() ?? null;
  const headers: Record<string, string> = { Accept: "text/event-stream" };
  if (last !== null) headers["Last-Event-ID"] = last;
  const { body } = await fetchRaw(path, { headers, signal, cache: "no-store" });
  if (body === null) return;
  onOpen();
  const messages = body
    .pipeThrough(new TextDecoderStream())
    .pipeThrough(new EventSourceParserStream())
    .getReader();
  for (;;) {
    const { done, value } = await messages.read();
    if (done) return;
    options.onMessage({ event: value.event ?? "message", id: value.id, data: value.data });
  }
}

function untilSeen(signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const look = () => {
      if (document.hidden && !signal.aborted) return;
      document.removeEventListener("visibilitychange", look);
      signal.removeEventListener("abort", look);
      resolve();
    };
    document.addEventListener("visibilitychange", look);
    signal.addEventListener("abort", look);
    look();
  });
}

function sleep(milliseconds: number, signal: AbortSignal): Promise<void> {
  return new Promise((resolve) => {
    const timer = setTimeout(resolve, milliseconds);
    signal.addEventListener("abort", () => (clearTimeout(timer), resolve()), { once: true });
  });
}
