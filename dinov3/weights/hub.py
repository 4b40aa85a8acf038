"""timm's copies of pretrained weights on the Hugging Face hub. Nothing heavy is imported here."""

from pathlib import Path
from urllib.parse import urlsplit

from huggingface_hub import constants, hf_hub_download, hf_hub_url, try_to_load_from_cache

from dinov3.weights.download import download, require_answer

HUB_FILE = "model.safetensors"


def require_hub_weights(repository: str) -> None:
    """Check that a repository's weights are in the cache, or that the hub serves them within seconds.

    Raises:
        ValueError: neither.
    """
    if isinstance(try_to_load_from_cache(repository, HUB_FILE), str):
        return
    try:
        if constants.HF_HUB_OFFLINE:
            raise ConnectionError("HF_HUB_OFFLINE is set")
        require_answer(hf_hub_url(repository, HUB_FILE))
    except (OSError, ValueError) as error:  # of the network, the hub or the address
        raise ValueError(_not_to_be_had(repository, error)) from error


def download_hub_weights(repository: str) -> Path:
    """Return the local path of a repository's weights, downloading them where they are not in the cache.

    Raises:
        ValueError: they are not in the cache, and the hub does not serve them, or the download breaks off.
    """
    cached = try_to_load_from_cache(repository, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    require_hub_weights(repository)  # the client alone would retry for a minute
    try:
        return Path(hf_hub_download(repository, HUB_FILE))
    except Exception as error:  # the client raises errors of its own, of its HTTP library and of the system
        raise ValueError(_not_to_be_had(repository, error)) from error


def download_url(url: str, check_hash: bool = False) -> Path:
    """Return the local path of a file, downloading it to PyTorch's cache where it is not there.

    Args:
        url: its address.
        check_hash: compare the file with the hash at the end of its name (`…-<hash>.pth`).

    Raises:
        ValueError: the address does not answer within seconds, the download breaks off, or the hash is another.
    """
    import torch.hub  # nothing heavy before it is needed

    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlsplit(url).path).name
    if path.is_file():
        return path
    named_hash = torch.hub.HASH_REGEX.search(path.name) if check_hash else None
    try:
        download(url, path, named_hash[1] if named_hash else "")
    except (OSError, ValueError) as error:
        raise ValueError(_not_to_be_had(url, error)) from error
    return path


def _not_to_be_had(repository: str, error: Exception) -> str:
    return (
        f"the pretrained weights of {repository} are not in the local cache and could not be downloaded "
        f"({type(error).__name__}: {' '.join(str(error).split())})"
    )
