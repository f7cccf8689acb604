"""Studies of effects: does a method do here what its paper says? One file each, in the folder of the method's axis."""
