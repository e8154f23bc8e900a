"""Weights of models with a memory that have a name: where they are published, licence, download.

They lie on the Hugging Face hub. `huggingface_hub` downloads them into its own cache, once a node
however many processes ask, and reads HF_HOME, HF_ENDPOINT (a mirror), HF_HUB_OFFLINE and HF_TOKEN.
To move to other revisions, change `PUBLISHED`.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from masking.segmenter.weights import SegmenterWeightsError

FILES = ("config.json", "model.safetensors")
"""Files of a repository that are downloaded."""
_LOG_SECONDS = 10.0
"""Seconds between two lines of progress where there is no terminal."""
_APACHE = "Apache-2.0"


@dataclass(frozen=True)
class Published:
    """A repository of the hub."""

    repository: str
    """Owner and name."""
    revision: str
    """Its commit; the files of a commit never change."""
    megabytes: int
    """Size of the weights, in millions of bytes."""
    licence: str
    """Licence of the weights."""
    gate: str = ""
    """What the owner asks for before the files may be downloaded; empty: nothing."""


PUBLISHED = {
    "sam2.1-tiny": Published(
        "facebook/sam2.1-hiera-tiny", "de431c4043854a71d8101e17995dfe596bf101a5", 156, _APACHE
    ),
    "sam2.1-small": Published(
        "facebook/sam2.1-hiera-small", "ee5bba1d82bb8749febdf90f45e84b687142ba03", 184, _APACHE
    ),
    "sam2.1-base-plus": Published(
        "facebook/sam2.1-hiera-base-plus", "b7320756a13354e7530a63935656d35b2f91a290", 323, _APACHE
    ),
    "sam2.1-large": Published(
        "facebook/sam2.1-hiera-large", "665f8e2ad61cf5f53d65644ff27c8ee525124610", 898, _APACHE
    ),
    "edgetam": Published(
        "yonigozlan/EdgeTAM-hf", "c266ce53b3fc00f0f495b583f6a116c4e57f53bb", 56, _APACHE
    ),
    "sam3-tracker": Published(
        "facebook/sam3",
        "3c879f39826c281e95690f02c7821c4de09afae7",
        3440,
        "Meta's SAM License, which is not an open-source licence: it rules out some uses, military"
        " ones among them; read it first",
        gate="accept Meta's terms on the page of the repository, wait until access is granted, and"
        " set HF_TOKEN to a token of the same account (or run `hf auth login`)",
    ),
}
"""Weights by their short names. None of them is a default."""


def suggestion(text: str, names: Iterable[str]) -> str:
    """Return ", perhaps you meant NAME" for a text or path that resembles a name, else ""."""
    known = {name: name for name in names}
    for name, published in PUBLISHED.items():
        known |= {
            published.repository.lower(): name,
            published.repository.split("/")[1].lower(): name,
        }
    close = get_close_matches(Path(text.lower()).name.replace("_", "-"), known, n=1, cutoff=0.7)
    return f", perhaps you meant {known[close[0]]}" if close else ""


def download(name: str, note: Callable[[str], None] = lambda line: None) -> Path:
    """Return the folder with the files of a name of `PUBLISHED`, downloaded if they are not there.

    Args:
        name: a key of `PUBLISHED`.
        note: is called with a line of text before a download.

    Raises:
        SegmenterWeightsError: they cannot be downloaded; the message says why, and which files to
            fetch elsewhere.
    """
    from huggingface_hub import try_to_load_from_cache  # here: it is not needed without such names

    published = PUBLISHED[name]
    where = (published.repository, published.revision)
    cached = [try_to_load_from_cache(where[0], file, revision=where[1]) for file in FILES]
    if not all(isinstance(path, str) for path in cached):
        note(
            f"downloading {name}, {published.megabytes:,} MB, from {published.repository}"
            f" (revision {published.revision[:7]}); licence: {published.licence}"
        )
        cached = [_fetch(name, published, file) for file in FILES]
    return Path(str(cached[0])).parent


def _fetch(name: str, published: Published, file: str) -> str:
    """Download a file of a repository and return its path in the cache."""
    from huggingface_hub import constants, errors, hf_hub_download

    try:
        return hf_hub_download(
            published.repository, file, revision=published.revision, tqdm_class=_progress_bar()
        )
    except errors.GatedRepoError as error:
        why = f"the hub has not opened {published.repository} to you ({_status(error)}): "
        why += published.gate or "ask its owner for access, and set HF_TOKEN"
        cause: Exception = error
    except errors.RepositoryNotFoundError as error:
        why = (
            f"{constants.ENDPOINT} has no {published.repository} for you ({_status(error)}): unset"
        )
        why += " HF_TOKEN if it is not valid there, or set HF_ENDPOINT to a mirror that has it"
        cause = error
    except (errors.RevisionNotFoundError, errors.RemoteEntryNotFoundError) as error:
        why = f"{constants.ENDPOINT} has no {file} of revision {published.revision} of"
        why += (
            f" {published.repository} ({_status(error)}): a mirror may lack it, change HF_ENDPOINT"
        )
        cause = error
    except errors.LocalEntryNotFoundError as error:
        why = f"they are not in the cache {constants.HF_HUB_CACHE}, and "
        if constants.HF_HUB_OFFLINE:
            why += "HF_HUB_OFFLINE is set: unset it"
        else:
            why += f"{constants.ENDPOINT} cannot be reached ({error.__cause__}): set HF_ENDPOINT to"
            why += " the address of a mirror if there is one"
        cause = error
    except Exception as error:  # the hub's client raises all kinds
        why = f"the download of {file} from {constants.ENDPOINT} failed: {_first_line(error)}: run"
        why += " again"
        cause = error
    raise SegmenterWeightsError(f"weights {name}: {why}. {_by_hand(published)}") from cause


def _by_hand(published: Published) -> str:
    """Say which files to bring, and where to."""
    return (
        f"Or fetch the files elsewhere: `hf download {published.repository} {' '.join(FILES)}"
        f" --revision {published.revision} --local-dir FOLDER` on a machine with access; copy"
        " FOLDER to this one, and give its path in place of the name"
    )


def _status(error: Any) -> str:
    """Return the status that the hub answered with, in words."""
    return f"HTTP {error.response.status_code}"


def _first_line(error: Exception) -> str:
    text = str(error).strip()
    return text.splitlines()[0].rstrip(".") if text else type(error).__name__


def _progress_bar() -> Any:
    """Return the hub's class of progress bars, which in a log prints a line every ten seconds."""
    import sys

    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        def __init__(self, *args: Any, **settings: Any) -> None:
            if settings.get("disable") is None and not sys.stderr.isatty():
                settings |= {"disable": False, "mininterval": _LOG_SECONDS, "delay": _LOG_SECONDS}
            super().__init__(*args, **settings)

    return Bar
