"""The one error that a user can mend."""


class UserError(Exception):
    """A mistake in the user's input or surroundings.

    Its text is one line that says what is wrong, where, and what was expected. Commands print that line and end
    with exit code 2; every other exception is a defect of ours and keeps its traceback.
    """
