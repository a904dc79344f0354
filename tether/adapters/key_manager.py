"""Keys from a key manager, such as Barbican or Vault, by castellan. Imported only where the settings ask for it."""

from __future__ import annotations

from collections.abc import Sequence

from tether.errors import ConfigError, TetherError

KEY_BYTES = 32


def read_keys(key_ids: Sequence[str], config_file: str) -> list[bytes]:
    """Return symmetric keys of 256 bits by their ids.

    Args:
        config_file: castellan's own settings: an oslo.config file with its ``[key_manager]`` section.

    Raises:
        ConfigError: castellan is not installed, its settings are wrong, or it does not give such a key.
    """
    try:
        from castellan import key_manager
        from castellan.common import utils
        from oslo_config import cfg
    except ImportError as error:
        raise ConfigError(
            "key_source is castellan, which is not installed", hint="pip install 'tether[castellan]'"
        ) from error
    doing = f"castellan cannot be set up with {config_file or 'no file'}"
    try:
        conf = cfg.ConfigOpts()
        conf([], project="castellan", default_config_files=[config_file] if config_file else [])
        context = utils.credential_factory(conf)
        manager = key_manager.API(conf)
        keys = []
        for key_id in key_ids:
            doing = f"the key manager does not give key {key_id}"
            keys.append(_checked(manager.get(context, key_id).get_encoded(), key_id))
    except TetherError:
        raise
    except Exception as error:  # castellan's drivers let through whatever their libraries raise
        # Their texts may repeat what they were given: a token, a key.
        raise ConfigError(
            f"{doing}: {type(error).__name__}",
            hint="see that it answers; [secrets] castellan_config names the file with castellan's own [key_manager]"
            " section, in which auth_type is needed",
        ) from error
    return keys


def _checked(secret: object, key_id: str) -> bytes:
    if not isinstance(secret, bytes) or len(secret) != KEY_BYTES:
        raise ConfigError(
            f"key {key_id} of the key manager is no symmetric key of {8 * KEY_BYTES} bits",
            hint="name another one in [secrets] castellan_key_id",
        )
    return secret
