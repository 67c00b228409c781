"""What a prompt states, as questions: its noun phrases, found by the small words between them, for a model that answers yes or no.

    a red ball on the left of two green cubes, at night  ->  a red ball?  two green cubes?  night?

Not a parser: no dictionary and no grammar beyond these lists, so a phrase may keep a verb ("a dog chasing?"). English only.
"""

import re

MOST = 8  # questions for one prompt, as many as T2I-CompBench asks
# Words that join phrases: never part of one.
JOINTS = {
    *("and", "or", "with", "without", "in", "on", "at", "of", "by", "to", "from", "for", "over", "under", "above", "below", "behind", "beside"),
    *("between", "near", "next", "inside", "outside", "into", "onto", "through", "against", "around", "across", "beneath", "underneath", "while"),
    *("is", "are", "was", "were", "has", "have", "as", "that", "which", "wearing", "holding", "sitting", "standing", "it", "its", "their"),
}
# Words that begin a phrase.
DETERMINERS = {"a", "an", "the", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "some", "several", "many"}
# Phrases that name a place in the picture, or the picture itself: nobody can see them.
PLACES = {"left", "right", "top", "bottom", "front", "back", "side", "middle", "center", "centre", "left side", "right side", "other", "each other"}
MEDIA = {"photo", "photograph", "picture", "image", "painting", "drawing", "illustration", "render", "view"}


def questions(prompt: str) -> list[str]:
    """Questions whose answers are "yes" where the picture shows what the prompt says; none for a prompt without a word. At most MOST."""
    phrases: list[list[str]] = [[]]
    for token in re.findall(r"[\w'-]+|[^\w\s]", prompt.lower()):
        joint = token in JOINTS or not re.search(r"\w", token)
        if joint or token in DETERMINERS:
            phrases.append([])
        if not joint:
            phrases[-1].append(token)
    stated = [" ".join(phrase) for phrase in phrases if _visible(phrase)]
    return [f"{phrase}?" for phrase in dict.fromkeys(stated)][:MOST]


def _visible(phrase: list[str]) -> bool:
    rest = [word for word in phrase if word not in DETERMINERS]
    return bool(rest) and " ".join(rest) not in PLACES and rest[-1] not in MEDIA
