"""Models on the Hugging Face hub: fetch one into the cache, find it there again, list them, remove one.

The cache is huggingface_hub's own, where its settings put it, so that other programs share what was fetched. That
package is slow to import, so each function imports it when it is called.
"""

from mistral_mlx.hub.cache import Stored, find, remove, stored
from mistral_mlx.hub.names import SIDE_FILES, is_hub_name
from mistral_mlx.hub.pull import Progress, download_size, pull

__all__ = ["SIDE_FILES", "Progress", "Stored", "download_size", "find", "is_hub_name", "pull", "remove", "stored"]
