// A name that can be seen and clicked, even one of marks and blanks alone.
import { Text } from "./basics";

const VISIBLE = /[\p{L}\p{N}\p{P}\p{S}]/u;

interface Props {
  children: string;
  /** Shown beside a name without visible characters. */
  or?: string;
}

export function Named({ children, or = "no visible letters" }: Props) {
  if (VISIBLE.test(children)) return <Text>{children}</Text>;
  return (
    <>
      <Text>{children}</Text> <small>({or})</small>
    </>
  );
}
