"""Control: policies that step Gymnasium environments."""
