"""Feature maps of a model, as ``timm.create_model(name, features_only=True)`` gives them. Knows no model."""

from timm.models._features import FeatureGetterNet


class Features(FeatureGetterNet):
    """A model that returns its feature maps: what ``timm.create_model(name, features_only=True)`` gives."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)
