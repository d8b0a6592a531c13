import os,sys,time,json
import pytest
from pathlib import Path
from conftest import *
def test_start(small_model, own_cache):
    from polyrl.api import train
    import shutil
    shutil.copytree(small_model,"/tmp/e2e/small",dirs_exist_ok=True)
