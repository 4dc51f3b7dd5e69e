// Messages about what the user did: read out to screen readers; good news disappears by itself.
import { signal } from "@preact/signals";

const SECONDS = 8;
interface Notice {
  id: number;
  kind: "good" | "bad";
  text: string;
}
const notices = signal<Notice[]>([]);
let count = 0;

export function notify(kind: Notice["kind"], text: string): void {
  const notice = { id: ++count, kind, text };
  notices.value = [...notices.value, notice];
  if (kind === "good") setTimeout(() => dismiss(notice.id), SECONDS * 1000);
}

/** Do something that may fail and show the error if it does; returns whether it succeeded. */
export async function attempt(act: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await act();
    if (done !== undefined) notify("good", done);
    return true;
  } catch (error) {
    notify("bad", error instanceof Error ? error.message : String(error));
    return false;
  }
}

function dismiss(id: number): void {
  notices.value = notices.value.filter((notice) => notice.id !== id);
}

export function Notices() {
  return (
    <div class="notices" role="status" aria-live="polite">
      {notices.value.map((notice) => (
        <p key={notice.id} class={`notice ${notice.kind}`}>
          <span>{notice.text}</span>
          <button class="plain" aria-label="Dismiss" onClick={() => dismiss(notice.id)}>
            ✕
          </button>
        </p>
      ))}
    </div>
  );
}
