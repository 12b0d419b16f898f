"""Other people's error messages, cut to fit into one line of ours."""


def one_line(error: BaseException, limit: int = 200) -> str:
    """The first line of an error's message that says anything, or its type if none does."""
    lines = (line.strip() for line in str(error).splitlines())
    text = next((line for line in lines if line), type(error).__name__)
    return text if len(text) <= limit else text[: limit - 3] + "..."
