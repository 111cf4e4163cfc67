"""The token network with a distillation token and its classifier. Everything else is the token network's and timm's."""

from timm.models.deit import VisionTransformerDistilled

from optnet.networks.tokens import TokenNetwork


class DistilledTokenNetwork(TokenNetwork, VisionTransformerDistilled):
    """A token network whose prediction is the mean of two classifiers, of the class and the distillation token.

    After ``set_distilled_training()`` it returns both predictions in training mode. Touvron et al. 2021 (DeiT).
    """

    first_parameters = f"{TokenNetwork.first_parameters}|dist_token"
