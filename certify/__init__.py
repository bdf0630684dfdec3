"""Training networks whose safe radius is large, and measuring what a defence is worth."""
