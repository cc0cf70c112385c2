"""Limits for reading files from outside, in one place, each with its reason.

A limit is far above real files and far below what does harm. An error about a limit gives the
value, the limit and a hint.
"""

MB = 1024**2
GB = 1024**3

# -- data ----------------------------------------------------------------------------------------

ROW_CHARACTERS = 16_000_000
"""One example: a long book has 5 million; reading, rendering and tokenising take 25 times that."""
RENDERED_CHARACTERS = 2 * ROW_CHARACTERS
"""One example as a chat template shows it: templates add a few hundred characters for each turn."""
BATCH_CHARACTERS = 4_000_000
"""Examples that are rendered and tokenised at once, of which a few batches are in memory."""
JSON_OBJECT_CHARACTERS = 64_000_000
"""A `.json` file that is one object must be in memory as a whole; a list of rows need not."""
CSV_ROW_LINES = 200_000
"""Lines of one row of a CSV file: a long book has 100,000."""
COLUMNS = 10_000
"""Columns of a table: wide ones have thousands."""

PARQUET_ROWS = 200_000_000
"""Equal rows of a Parquet file take no space in the file, but some when they are counted."""
PARQUET_VALUES = 100_000_000
"""Values in the lists of one row group, which may all belong to one row."""
PARQUET_DECODED_BYTES = 1 * GB
"""The pages of a row group that are in memory at once; writers make pages of 1 MB."""
PARQUET_FOOTER_BYTES = 64 * MB
"""The list of columns and row groups: 2,000 columns in 100 row groups take 40 MB."""
UNPACKED_FREE_BYTES = 2 * GB
UNPACKED_RATIO = 500
"""Data above the first limit may unpack to at most this many times the file's size."""
DATA_UNPACKED_FREE_BYTES = 20 * MB
DATA_UNPACKED_RATIO = 200
"""Compressed text above the first limit: real text shrinks to a tenth, equal rows to a 300th.
What is below takes a few seconds, even where a row has ten characters."""
DATA_LINES_FREE = 1_000_000
DATA_LINES_RATIO = 10
"""Lines above the first limit for each byte of the compressed file: one with random `yes` or `no`
takes an eighth of a byte at least. Lines of two letters would pass the limits on bytes."""
DATA_UNPACKED_BYTES = 64 * GB
"""Whatever the ratio: reading so much takes an hour."""
UNPACKED_FILE_BYTES = 4 * GB
"""A compressed Parquet or Arrow file, which is unpacked to the disk to be read."""
UNPACKER_BYTES = 256 * MB
"""The memory of an unpacker: `xz -9` takes 65 MB."""
ARROW_VALUES_BYTES = 1 * GB
"""A batch of an Arrow file: `datasets` writes batches of 1,000 rows."""
ENCODING_SCANNED_BYTES = 256 * MB
"""How far a text is searched for the first character beyond ASCII, which takes a second at most."""
ENCODING_SAMPLE_BYTES = 1 * MB
"""What is read from there to find out the encoding."""
FOLDER_DEPTH = 4
"""Folders within a folder of data: the Hub's layouts have two or three."""
HUB_JSON_BYTES = 1 * GB
"""A `.json` file of a Hub data set that is one list or object, which `datasets` holds whole."""

COUNTING_SECONDS = 3
"""How long rows are counted for the first look at data; a million takes a second."""

# -- data sets of the Hub ------------------------------------------------------------------------

CARD_BYTES = 10 * MB
"""A README with its metadata: those with hundreds of configurations reach 1 MB."""
CARD_VALUES = 1_000_000
"""Values in it: 4,000 configurations have 200,000. YAML can let one stand in many places."""
CARD_DEPTH = 100
"""Nesting in it: columns within columns are a few levels each."""
HUB_CONFIGURATIONS = 10_000
"""Configurations of a data set: one for each language makes 4,000."""
HUB_FILES = 10_000
"""Files of one configuration, each of which takes a request: web texts of terabytes have more."""
HUB_TREE_ENTRIES = 200_000
"""Files and folders of a repository, listed for their sizes: the Hub advises 100,000 at most."""
HUB_SECONDS = 20
"""The wait for an answer of the Hub, for what is shown before a download."""
FIRST_ROWS_BYTES = 1 * MB
"""The beginning of a text file that is fetched for its first rows."""
FIRST_ROWS_GROUP_BYTES = 16 * MB
"""The first row group of a Parquet file, likewise: the Hub's own have 1,000 rows."""
FIRST_ROWS_FILE_BYTES = 2 * GB
"""A Parquet file is copied as a hole of its size; the Hub's own have 500 MB."""

# -- models --------------------------------------------------------------------------------------

CONFIG_BYTES = 4 * MB
"""config.json, generation_config.json: real ones stay below 1 MB."""
TEMPLATE_BYTES = 1 * MB
"""A chat template: the longest in use have 20 KB."""
TEMPLATE_SECONDS = 60
"""Rendering a batch of examples: the slowest templates take a millisecond for each."""
PROMPT_SECONDS = 10
"""Rendering one conversation for an answer."""
TOKENIZER_BYTES = 256 * MB
"""A file of a tokenizer: vocabularies of 250,000 tokens take 35 MB."""
INDEX_BYTES = 64 * MB
"""The index of weight files: one with 140,000 tensors takes 15 MB."""
HEADER_BYTES = 32 * MB
"""The header of one weight file; safetensors itself accepts 100 MB, which take a gigabyte."""
FOLDER_ENTRIES = 10_000
"""Files in a model folder: a sharded model has a few hundred. Also those among which adapters are
looked for: a training with 100 checkpoints leaves 1,500."""
LAYERS = 2_000
"""Layers in config.json: the deepest models have 200; each is built before a weight is read."""
EXPERTS = 10_000
"""Experts of a layer: the largest mixtures have 512."""
EXPERTS_IN_ALL = 200_000
"""Experts of all layers, some of which are modules of their own: the largest models have 25,000."""
SIZE = 2**27
"""A width, a vocabulary or a context in config.json: the longest context is 10 million tokens."""
BUFFER_BYTES = 1 * GB
"""Tables that a model allocates in addition to its weights, such as masks."""

# -- GGUF files ----------------------------------------------------------------------------------

GGUF_HEADER_BYTES = 256 * MB
"""Settings with the vocabulary, and the list of tensors: 260,000 tokens with merges take 15 MB."""
GGUF_SETTINGS = 4_000
"""Settings: real files have 30 to 60."""
GGUF_TENSORS = 100_000
"""Tensors: the largest models have 2,000, since the experts of a layer are one tensor."""
GGUF_NAME_BYTES = 1_000
"""The name of a setting or a tensor: llama.cpp reads tensors' names of 64 bytes at most."""
GGUF_TEXT_BYTES = 64 * MB
"""One text among the settings: some files hold a whole tokenizer.json of 35 MB."""
GGUF_TOKEN_BYTES = 1 * MB
"""One token: the longest are rows of spaces of a few hundred bytes."""
GGUF_LIST_VALUES = 4_000_000
"""Values of a list: the largest vocabularies have 260,000 tokens and 500,000 merges."""
GGUF_NUMBERS = 2**42
"""Numbers of one tensor, whatever its bytes: the largest have 2**32."""
GGUF_CHECK_SECONDS = 60
"""Reading a header in a process of its own: the largest take a second."""
GGUF_CHECK_BYTES = 2 * GB
"""The memory of that process, which holds settings and lists."""

# -- adapters ------------------------------------------------------------------------------------

ADAPTER_TEXT_BYTES = 1 * MB
"""adapter_config.json and the workbench's own file next to it: a few KB."""
ADAPTER_BYTES = 8 * GB
"""The weights of an adapter: rank 256 on every layer of a model of 70 billion takes 7 GB."""
ZIP_DIRECTORY_BYTES = 1 * MB
"""The list of files in a zip, read before anything else: a folder of an adapter has ten, and a
training with 100 checkpoints 1,500, which take 200 KB."""
ZIP_FREE_BYTES = 100 * MB
ZIP_RATIO = 100
"""A file above the first limit may unpack to at most this many times its packed size."""
