// A field that files are dropped on or chosen with.
import type { ComponentChildren } from "preact";
import { useState } from "preact/hooks";

interface Props {
  /** The label of the field. */
  children: ComponentChildren;
  accept: string;
  multiple?: boolean;
  onFiles: (files: File[]) => void;
  invalid?: boolean;
}

export function Drop({ children, accept, multiple = false, onFiles, invalid = false }: Props) {
  const [over, setOver] = useState(false);
  const take = (list: FileList | null | undefined) => {
    const files = [...(list ?? [])];
    if (files.length > 0) onFiles(multiple ? files : files.slice(0, 1));
  };
  const drop = (event: DragEvent) => {
    event.preventDefault();
    setOver(false);
    take(event.dataTransfer?.files);
  };
  const hover = (event: DragEvent) => {
    event.preventDefault();
    setOver(true);
  };
  const choose = (event: Event) => {
    const input = event.currentTarget as HTMLInputElement;
    take(input.files);
    input.value = ""; // so that the same file can be chosen again
  };
  return (
    <label
      class={over ? "drop over" : "drop"}
      onDrop={drop}
      onDragOver={hover}
      onDragLeave={() => setOver(false)}
    >
      {children}
      <input
        class="unseen"
        type="file"
        accept={accept}
        multiple={multiple}
        aria-invalid={invalid}
        onChange={choose}
      />
    </label>
  );
}
