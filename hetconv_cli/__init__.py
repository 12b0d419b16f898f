"""HetConv for any convolutional network: what it saves on paper, what is counted, what is faster, and the network."""
