"""What is asked of a network over one input set, one file a question: robust, reach, enclose, Lipschitz constant."""
