"""What features mean: data collected on a text and from the weights, kept beside a transcoder, and labels from them."""

from circuits.features.cards import TranscoderCards
from circuits.features.collect import collect_features, text_activations
from circuits.features.feature import Context, Feature, TokenScores
from circuits.features.file import FeatureData
from circuits.features.known import Labels, feature_data, open_feature_data, relabel
from circuits.features.rule import label

__all__ = ["Context", "Feature", "FeatureData", "Labels", "TokenScores", "TranscoderCards", "collect_features",
           "feature_data", "label", "open_feature_data", "relabel", "text_activations"]
