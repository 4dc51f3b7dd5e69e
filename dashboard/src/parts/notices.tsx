// What went wrong or well after somebody did something; read out, and gone after a while.
import { signal } from "@preact/signals";

const SECONDS = 8;
interface Notice {
  id: number;
  kind: "good" | "bad";
  text: string;
}
const notices = signal<Notice[]>([]);
let count = 0;

export function tell(kind: Notice["kind"], text: string): void {
  const notice = { id: ++count, kind, text };
  notices.value = [...notices.value, notice];
  if (kind === "good") setTimeout(() => dismiss(notice.id), SECONDS * 1000);
}

/** Do something that may fail, and tell if it does; whether it went well. */
export async function attempt(act: () => Promise<unknown>, done?: string): Promise<boolean> {
  try {
    await act();
    if (done !== undefined) tell("good", done);
    return true;
  } catch (error) {
    tell("bad", error instanceof Error ? error.message : String(error));
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
