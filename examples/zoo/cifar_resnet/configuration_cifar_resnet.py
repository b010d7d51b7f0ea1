from transformers import PreTrainedConfig


class CifarResNetConfig(PreTrainedConfig):
    """ResNet for 32x32 images (He et al. 2016): three stages of basic blocks of 1, 2, 4 times `width` channels.

    `depth` = 6 * blocks_per_stage + 2, so 8, 20, 32, 44, 56 are 1, 3, 5, 7, 9 blocks per stage. `shortcut` is "pad"
    (parameter-free: strided slice, zero channels), "conv" (1x1) or "conv_norm" (1x1 and batch norm). `same_padding`
    pads strided convolutions at the end only, as TensorFlow does.
    """

    model_type = "cifar_resnet"

    depth: int = 20
    width: int = 16
    shortcut: str = "pad"
    conv_bias: bool = False
    norm_eps: float = 1e-5
    same_padding: bool = False
    image_size: int = 32
    num_channels: int = 3
