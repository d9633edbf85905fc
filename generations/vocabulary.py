"""Special token ids, as in bert-base-uncased. EOS is the full stop that every caption ends with."""

PAD, UNKNOWN, CLS, SEP, MASK, EOS = 0, 100, 101, 102, 103, 1012
EMPTY = (CLS, SEP)  # a caption without words: what guidance compares a caption with
